"""``foretoken history`` as a person meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from foretoken.memory.history import History
from helpers.commanding import call


@pytest.fixture
def path(tmp_path):
    """A history of two namespaces."""
    with History(tmp_path / "history.sqlite") as history:
        history.add("code", "qwen", [1, 2, 3])
        history.add("code", "qwen", [4])
        history.add("chat", "llama", [5, 6])
    return history.path


@pytest.fixture
def run(monkeypatch, capsys, path):
    """Run a command of the group; (exit status, standard output, standard error)."""

    def run(command: str, *arguments: object, history: Path | None = path) -> tuple[int, str, str]:
        where = [] if history is None else ["--history", str(history)]
        return call(monkeypatch, capsys, "history", command, *arguments, *where)

    return run


@pytest.mark.parametrize("command", [["stats"], ["clear"], ["export", "saved"], ["import", "lines"]])
@pytest.mark.parametrize(("name", "said"), [("", "is empty"), ("\udcff", "is no text")])
def test_a_namespace_that_is_none_ends_in_one_sentence(run, path, monkeypatch, tmp_path, command, name, said):
    """The name of a variable that is not set, and an argument that is not UTF-8."""
    monkeypatch.chdir(tmp_path)
    before = rows(path)
    status, out, err = run(*command, "--namespace", name)
    assert status == 2 and said in err and out == "" and err.count("\n") == 1 and "\udcff" not in err
    assert rows(path) == before and {file.name for file in tmp_path.iterdir()} == {"history.sqlite"}


def rows(path: Path) -> dict[str, int]:
    with History(path) as history:
        return {row.namespace: row.answers for row in history.stats()}


def test_stats_are_a_table(run):
    status, out, err = run("stats")
    assert status == 0 and err == ""
    code, chat = (next(line for line in out.splitlines() if name in line) for name in ("code", "chat"))
    assert [cell.strip() for cell in code.split("│")[1:6]] == ["code", "qwen", "2", "4", "16"]
    assert [cell.strip() for cell in chat.split("│")[1:6]] == ["chat", "llama", "1", "2", "8"]
    assert "code" not in run("stats", "--namespace", "chat")[1]


def test_stats_are_json(run):
    status, out, _ = run("stats", "--json", "--namespace", "code")
    (row,) = json.loads(out)
    oldest, newest = (datetime.fromisoformat(row.pop(end)) for end in ("oldest", "newest"))
    assert status == 0 and oldest.tzinfo is not None and oldest <= newest
    assert row == {"namespace": "code", "fingerprint": "qwen", "answers": 2, "tokens": 4, "bytes": 16}


def test_names_that_others_made_reach_no_terminal_as_control_sequences(run, path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with History(path) as history:
        history.add("\x1b[2J\x9b1m\u202etxt\n", "\x07f", [1])
    status, out, err = run("stats")
    assert status == 0 and err == ""
    assert r"\x1b[2J\x9b1m\u202etxt\n" in out and r"\x07f" in out
    assert out.replace("\n", "").isprintable()


def test_a_history_that_does_not_exist_yet_is_empty(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "data"))
    status, out, err = run("stats", history=None)
    assert (status, out, err) == (0, "", "Nothing is remembered.\n")
    assert run("stats", "--json", history=None)[1] == "[]\n"
    assert run("clear", "--all", history=None)[2] == "0 answers deleted.\n"
    assert not (tmp_path / "data").exists()


def test_clear_empties_a_namespace_or_all(run, path):
    assert run("clear", "--namespace", "code") == (0, "", "2 answers deleted.\n")
    assert rows(path) == {"chat": 1}
    assert run("clear", "--all") == (0, "", "1 answer deleted.\n")
    assert rows(path) == {}


@pytest.mark.parametrize("arguments", [[], ["--all", "--namespace", "code"]])
def test_clear_wants_to_know_what(run, path, arguments):
    status, out, err = run("clear", *arguments)
    assert status == 2 and out == "" and err.count("\n") == 1 and "--namespace or --all" in err
    assert rows(path) == {"code": 2, "chat": 1}


@pytest.mark.parametrize("name", ["saved.jsonl", "saved.jsonl.gz"])
def test_what_was_exported_is_imported(run, path, tmp_path, name):
    assert run("export", tmp_path / name) == (0, "", "3 answers exported.\n")
    assert run("import", tmp_path / name, history=tmp_path / "new.sqlite") == (0, "", "3 answers imported.\n")
    assert rows(tmp_path / "new.sqlite") == rows(path)
    assert run("export", tmp_path / name, "--namespace", "chat")[2] == "1 answer exported.\n"
    assert run("import", tmp_path / name, "--namespace", "code")[2] == "0 answers imported.\n"


def test_lines_that_hold_no_answer_are_named(run, path, tmp_path):
    good = json.dumps({"namespace": "new", "fingerprint": "f", "tokens": [1]})
    (tmp_path / "some.jsonl").write_text(f"{good}\n{{\n{good}\n")
    assert run("import", tmp_path / "some.jsonl")[::2] == (0, "2 answers imported.\n1 line was skipped: line 2.\n")
    (tmp_path / "some.jsonl").write_text(f"[]\n{good}\n7\n")
    assert "\n2 lines were skipped: lines 1, 3.\n" in run("import", tmp_path / "some.jsonl")[2]
    (tmp_path / "some.jsonl").write_text("bad\n" * 1000)
    assert "\n1000 lines were skipped: lines 1, 2, " in (err := run("import", tmp_path / "some.jsonl")[2])
    assert err.endswith(", 20 and 980 more.\n") and rows(path)["new"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import", "nowhere/none.jsonl"], "The file 'nowhere/none.jsonl' could not be read: No such file"),
        (["export", "nowhere/none.jsonl"], "The file 'nowhere/none.jsonl' could not be written: No such file"),
    ],
)
def test_files_that_cannot_be_used_end_in_one_sentence_and_status_2(run, arguments, said):
    status, out, err = run(*arguments)
    assert status == 2 and said in err and out == "" and err.count("\n") == 1


@pytest.mark.parametrize("command", [["stats"], ["clear", "--all"], ["export", "saved"], ["import", "lines"]])
def test_a_history_that_cannot_be_used_ends_in_one_sentence_and_status_2(run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("lines").write_text(json.dumps({"namespace": "n", "fingerprint": "f", "tokens": [1]}))
    Path("text").write_text("no database " * 1000)
    for history, said in (("text", "left alone"), ("text/history", "Not a directory"), (".", "no regular file")):
        status, out, err = run(*command, history=Path(history))
        assert status == 2 and said in err and out == "" and err.count("\n") == 1
    assert {file.name for file in tmp_path.iterdir()} == {"history.sqlite", "lines", "text"}  # nothing moved or made


def test_help_tells_the_commands(run):
    code = "import sys; sys.argv = ['foretoken', 'history', '--help']; import foretoken.cli as c\n"
    code += "try: c.main()\nexcept SystemExit: sys.exit('history imported' if 'sqlite3' in sys.modules else 0)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(command in said for command in ("stats", "clear", "export", "import"))
