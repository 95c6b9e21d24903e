"""What commands and calls leave on the disk: nothing that anybody wrote or was answered, unless it was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import foretoken
from foretoken.memory.history import History
from helpers.commanding import call

WORDS = ("--prompt", "def area(width, height):", "--max-new-tokens", 4, "--background", "none")
USUAL = Path("data/foretoken/history.sqlite")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user who has written nothing yet, in the folder where all their files are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("FORETOKEN_HISTORY", raising=False)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Run a command that succeeds."""

    def run(*words: Any) -> None:
        status, _, err = call(monkeypatch, capsys, *words)
        assert status == 0, err

    return run


def written(home: Path) -> set[str]:
    """The files that there are; the cache, of numbers only, lies elsewhere."""
    return {file.relative_to(home).as_posix() for file in home.rglob("*") if file.is_file()}


def kept(path: Path) -> int:
    """The answers in a history."""
    with History(path) as history:
        return sum(row.answers for row in history.stats())


@pytest.mark.parametrize(
    "words", [("generate", *WORDS), ("compare", *WORDS, "--rounds", 1), ("check", "--dtype", "float32", *WORDS[:4])]
)
@pytest.mark.parametrize("drafter", ["mixed", "none"])
def test_commands_leave_no_trace(run, home, words, drafter):
    run(*words, *(() if words[0] == "check" else ("--drafter", drafter)))
    assert written(home) == set()


@pytest.mark.parametrize("command", [("compare", *WORDS, "--rounds", 1), ("check", "--dtype", "float32", *WORDS[:4])])
def test_what_compares_leaves_no_trace_even_where_the_history_is_on(run, home, monkeypatch, command):
    monkeypatch.setenv("FORETOKEN_HISTORY", "1")
    run(*command)
    assert written(home) == set()


@pytest.mark.parametrize("history", [{}, {"history": False}, {"history": None}])
@pytest.mark.parametrize("model", ["toy", "tiny"])
def test_calls_leave_no_trace(home, monkeypatch, model, history):
    monkeypatch.setenv("FORETOKEN_HISTORY", "1")  # a program's own matter, which the library does not read
    lm = foretoken.load(model, background=None, **history)
    assert lm.generate("abc", max_new_tokens=4).tokens
    assert written(home) == set()


@pytest.mark.parametrize(
    ("variable", "words", "place"),
    [
        (None, ("--history", "mine"), Path("mine")),
        (None, ("--history", "1"), USUAL),
        ("1", (), USUAL),
        ("theirs", (), Path("theirs")),
        ("theirs", ("--history", "mine"), Path("mine")),
        ("1", ("--no-history",), None),
        ("theirs", ("--no-history",), None),
        ("0", (), None),
        ("", (), None),
    ],
)
def test_the_history_is_on_where_it_is_asked_for(run, home, monkeypatch, variable, words, place):
    if variable is not None:
        monkeypatch.setenv("FORETOKEN_HISTORY", variable)
    run("generate", *WORDS, *words)
    assert {file for file in written(home) if not file.endswith(("-wal", "-shm"))} == (
        {place.as_posix()} if place else set()
    )
    assert place is None or kept(place) == 1


def test_calls_keep_answers_where_they_are_asked_to(home):
    for history, place in ((True, USUAL), ("mine", Path("mine"))):
        foretoken.load("toy", background=None, history=history).generate("abc", max_new_tokens=4)
        assert kept(place) == 1


def test_the_commands_of_the_history_look_where_the_variable_says(home, monkeypatch, capsys):
    monkeypatch.setenv("FORETOKEN_HISTORY", "theirs")
    with History(Path("theirs")) as history:
        history.add("n", "f", [1, 2])
    status, out, _ = call(monkeypatch, capsys, "history", "stats", "--json")
    assert status == 0 and [row["namespace"] for row in json.loads(out)] == ["n"]
