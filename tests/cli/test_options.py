"""Bad values of options, errors of the machine, names that are no names, and terminals too narrow for a table."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
from rich.table import Table

from foretoken.cli.app import COMMANDS, load
from foretoken.cli.compare import comparison_table
from foretoken.cli.console import PlainConsole, err, out, plain, print_json
from foretoken.core.errors import ForetokenError
from helpers.commanding import call

NUMBERS = ["", "x", "0", "-1", "2.5", "nan", "inf", "1e300", "9" * 30]
TEXTS = [
    "",
    "[/red]",
    "\x1b[31m",
    "\udcff",
    "a\0b",
    "a\nb",
    "x" * 300,
    "日本語",
    "FOLDER",
    "FILE",
    "/dev/null",
    "none/x/y",
]
DEVICES = ["", "banana", "cuda:99", "mps"]

BASE = {  # MODEL, FOLDER and FILE are the test's own
    "generate": ["--model", "MODEL", "--prompt", "abc", "--max-new-tokens", "2", "--background", "none"],
    "corpus build": ["FILE", "--model", "tiny", "--output", "FOLDER/store"],
    "corpus info": [],
}


def parameters() -> list[tuple[str, Any, bool]]:
    """Every parameter of these commands that takes a value, and whether it takes numbers."""
    found = []
    for name in BASE:
        first, *rest = name.split()
        command = load(first)
        for word in rest:
            command = command.commands[word]
        hints = {key: str(hint) for key, hint in get_type_hints(command.callback).items()}
        found += [
            (name, one, any(kind in hints[one.name] for kind in ("int", "float")))
            for one in command.params
            if not getattr(one, "is_flag", False)
        ]
    return found


def test_a_list_of_commands_says_what_they_say_themselves():
    for name, summary in COMMANDS.items():
        assert (load(name).help or "").partition("\n")[0] == summary


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command; (exit status, standard output, standard error)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # whatever a name might find there
    return lambda *words: call(monkeypatch, capsys, *words)


@pytest.mark.parametrize(
    ("command", "parameter", "numeric"), parameters(), ids=lambda part: str(getattr(part, "name", part))
)
def test_every_value_of_every_option_is_a_sentence_or_a_result(
    run, command, parameter, numeric, model_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # where a name that is a file's becomes one
    (tmp_path / "file.txt").write_text("the cat sat on the mat")
    for value in DEVICES if parameter.name == "device" else NUMBERS if numeric else TEXTS:
        words = list(BASE[command])
        option = next((name for name in parameter.opts if name.startswith("--")), None)
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
        words += [option, value] if option else ["--", value]
        places = {"MODEL": model_folder, "FOLDER": tmp_path, "FILE": tmp_path / "file.txt"}
        for name, place in places.items():
            words = [word.replace(name, str(place)) for word in words]
        status, said, told = run(*command.split(), *words)
        assert status in (0, 2), (value, told)
        assert "\x1b" not in told and not (status == 2 and (said or told.count("\n") != 1)), (value, told)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "--prompt", "a", "--history", "h", "--no-history"], "exclude each other"),
        (["generate", "--prompt", "a", "--drafter", ""], "no drafter named ''"),
        (["generate", "--prompt", "a", "--drafter", "anpd:depth=3"], "'anpd' has no option 'depth'"),
        (["generate", "--prompt", "a", "--drafter", "early-exit:layer=x"], "layer is 'x': give a whole number"),
        (["generate", "--prompt", "a", "--drafter", "draft-model"], "write 'draft-model:model=NAME'"),
        (["generate", "--prompt", "a", "--drafter", "anpd", "--background", "x"], "background is for the drafters"),
        (["compare", "--prompt", "a", "--draft-model", "tiny"], "No such option: --draft-model"),
        (["generate", "--prompt", "a", "--device", ""], "The device is empty"),
        (["generate", "--prompt", "a", "--stop", "a\udcff"], "no text"),
        (["generate", "--prompt", "a", "--temperature", "inf"], "--temperature is inf: give a finite number"),
        (["generate", "--prompt", "a", "--lookahead-parallel", "--background", "x"], "leave out --background"),
        (["generate", "--prompt", "a", "--lookahead-parallel", "--namespace", "x"], "leave out --namespace"),
        (["corpus", "build", "a", "--model", "tiny", "-o", "o", "--memory", "1e300"], "'--memory'"),
        (["corpus", "build", "a", "--model", "tiny", "-o", "o", "--memory", "nan"], "'--memory'"),
        (["corpus", "build", "a", "--model", "tiny", "-o", "o", "--min-count", "9" * 24], "'--min-count'"),
        (["generate", "--budget", "\x1b[31m"], "foretoken generate --help"),
        (["\x1b[31m"], r"'\x1b[31m'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(monkeypatch, capsys, words, said):
    status, printed, told = call(monkeypatch, capsys, *words)
    assert status == 2 and printed == "" and said in told and told.count("\n") == 1 and "\x1b" not in told


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            FileNotFoundError(2, "No such file", "a\x1b[31m\n"),
            r"The file 'a\x1b[31m\n' could not be used: No such file.",
        ),
        (OSError(28, "No space left on device"), "A file could not be used: No space left on device."),
        (MemoryError(), "There is not enough memory"),
        (OutOfMemoryError("CUDA"), "There is not enough memory"),
        (ForetokenError("one\n two"), "one  two"),
    ],
)
def test_what_the_machine_refuses_is_a_sentence(monkeypatch, capsys, error, said):
    def fail(standalone_mode: bool) -> None:
        raise error

    monkeypatch.setattr("foretoken.cli.app.app", fail)
    status, _, told = call(monkeypatch, capsys)
    assert status == 2 and told.startswith(f"foretoken: {said}") and told.count("\n") == 1


def test_a_fault_of_the_program_itself_is_not_hidden(monkeypatch, capsys):
    def fail(standalone_mode: bool) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("foretoken.cli.app.app", fail)
    with pytest.raises(KeyError):
        call(monkeypatch, capsys)


HOSTILE = "[/red]\x1b]0;t\x07\x9b31m\u202e\udcff"


def test_names_are_shown_as_they_are_everywhere(capsys):
    table = Table("name", title=HOSTILE)
    table.add_row(HOSTILE)
    for print_one in (out.print, err.print, out.rule):
        print_one(HOSTILE)
    out.print(table)
    logging.getLogger("foretoken").warning("%s", HOSTILE)
    shown = "".join(capsys.readouterr())
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\udcff]", shown) and shown.count("[/red]") >= 5
    assert plain(HOSTILE) == r"[/red]\x1b]0;t\x07\x9b31m\u202e\udcff" == plain(plain(HOSTILE))


def test_json_is_the_same_whatever_it_holds_and_wherever_it_goes(capsys, monkeypatch):
    value = {HOSTILE: ["é\n\t", 1.5]}
    print_json(value)
    printed = capsys.readouterr().out
    assert json.loads(printed) == value and printed.count("\x1b") == 0 and "é" in printed
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    print_json(value)
    assert json.loads(stdout.buffer.getvalue()) == value


@pytest.mark.parametrize("columns", [0, 1, 2, 7, 20, 40, 60])
def test_no_number_is_cut_short_on_a_narrow_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    plain_run = SimpleNamespace(tokens=range(12345), stats=SimpleNamespace(steps=23456, seconds=123.456))
    drafted_run = SimpleNamespace(stats=SimpleNamespace(steps=7890, acceptance_length=2.53, seconds=3.21))
    row: Any = SimpleNamespace(plain=plain_run, drafted=drafted_run, speed=38.46, identical=True)
    PlainConsole().print(comparison_table(["a name of some length" * 9], [row]))
    printed = capsys.readouterr().out
    for number in ("12345", "23456 → 7890", "123.46 → 3.21", "38.46x", "2.53", "yes"):
        assert number in printed
