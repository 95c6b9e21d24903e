"""Every option of replay, tune and bench with values that nobody should give: a sentence and status 2, or a result."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from foretoken.cli.app import load
from foretoken.measure.speculator import Analysis
from foretoken.replay import run
from helpers.commanding import call
from helpers.logs import rows, write_log, write_tokenizer

VALUES = ["", " ", "-1", "0", "1e999", "nan", "-inf", "2.5", "٣", "9" * 25, "\udcff", "x" * 300, "\x1b[31m", "[/red]"]
VALUES += ["missing/file", "folder", "binary", "deep.json", "~nobody/x"]


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name in ("replay", "tune"):
        yield (name,), load(name)
    for name, command in load("bench").commands.items():
        yield ("bench", name), command


CASES = [
    (words, parameter.opts[-1], parameter.opts[-1].startswith("--"))
    for words, command in commands()
    for parameter in command.params
    if not getattr(parameter, "is_flag", False)
]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a log, a tokenizer, and what is neither."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)  # no cluster is looked for
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # and no model
    monkeypatch.setattr("foretoken.replay.tune.RESAMPLES", 2)
    monkeypatch.setattr("foretoken.replay.run._on_cores", lambda jobs, processes: run._here(jobs))
    for page in ("replay_page", "tune_page"):  # five megabytes each
        monkeypatch.setattr(f"foretoken.reports.replay.{page}", lambda *_: "<html>")
    write_log(Path("log.jsonl"), rows(2))
    write_tokenizer(Path("tokenizer.json"))
    Path("folder").mkdir()
    Path("binary").write_bytes(bytes(range(256)))
    Path("deep.json").write_text("[" * 100_000)
    return tmp_path


def words_for(command: tuple[str, ...]) -> list[str]:
    """What the command needs, and what makes it quick."""
    if command[0] == "bench":
        return ["--background", "none"]
    words = ["log.jsonl", "--tokenizer", "tokenizer.json", "--background", "none", "--drafter", "anpd", "--jobs", "1"]
    return words + (["--costs", "flat", "--budget", "2"] if command[0] == "tune" else [])


@pytest.fixture
def nothing_measured(monkeypatch) -> None:
    """A benchmark finds nothing, at once; models are loaded if an option says which."""
    monkeypatch.setattr("foretoken.measure.run.measure", lambda *_: iter([[]]))
    nothing = Analysis("greedy", [], 0.0, [], 0, 0)
    monkeypatch.setattr("foretoken.measure.speculator.analyse", lambda *_: iter([nothing]))


@pytest.mark.parametrize(("command", "option", "is_option"), CASES, ids=str)
def test_no_value_is_a_traceback_or_leaves_anything(
    place, nothing_measured, monkeypatch, capsys, command, option, is_option
):
    if command[0] == "bench" and option not in ("--model", "--draft-model", "--dtype", "--device"):
        measured = SimpleNamespace(dtype="float32", exact=False)
        monkeypatch.setattr("foretoken.cli.bench._measured_model", lambda *_: measured)
    sys.stderr.reconfigure(errors="backslashreplace")  # as the interpreter's own is
    for value in VALUES:
        before = set(place.rglob("*"))
        given = [option, value] if is_option else ["--", value]
        status, _, err = call(monkeypatch, capsys, *command, *words_for(command), *given)
        assert status in (0, 2), (value, err)
        sentences = [line for line in err.splitlines() if line.startswith("foretoken: ")]
        assert len(sentences) == (1 if status == 2 and "Usage:" not in err else 0), (value, err)
        if status == 2:
            assert set(place.rglob("*")) == before and "\x1b" not in err, value
