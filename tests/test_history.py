"""The history: what it gives back, what it survives, and what it never does to generation."""

from __future__ import annotations

import gzip
import json
import logging
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken import ForetokenError
from foretoken import history as history_module
from foretoken.history import SCHEMA_VERSION, History, default_path

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals and file modes of POSIX")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "foretoken" / "history.sqlite"


@pytest.fixture
def history(path):
    with History(path) as history:
        yield history


@pytest.fixture
def warnings(caplog):
    """What has been logged so far."""
    caplog.set_level(logging.WARNING, "foretoken")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "foretoken"]


def texts(history: History, namespace: str = "n", fingerprint: str = "f", max_tokens: int = 10**9) -> list[list[int]]:
    return [answer.tolist() for answer in history.answers(namespace, fingerprint, max_tokens)]


def sql(path: Path, *statements: str) -> list[tuple]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def files(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


# What it gives back


def test_answers_come_back_from_the_file(path):
    with History(path) as history:
        history.add("n", "f", [1, 2, 3])
        history.add("n", "f", np.array([2**31 - 1, 0]))
    with History(path) as history:
        answers = history.answers("n", "f", 100)
        assert [answer.tolist() for answer in answers] == [[1, 2, 3], [2**31 - 1, 0]]
        assert all(answer.dtype == np.int32 and answer.flags.writeable for answer in answers)


def test_the_newest_tokens_come_back(history):
    for answer in ([1, 2, 3], [4, 5], [6, 7, 8]):
        history.add("n", "f", answer)
    assert texts(history, max_tokens=3) == [[6, 7, 8]]
    assert texts(history, max_tokens=4) == [[5], [6, 7, 8]]
    assert texts(history, max_tokens=2) == [[7, 8]]
    assert texts(history, max_tokens=0) == texts(history, max_tokens=-1) == []


names = st.text(max_size=3)
tokens = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)
operations = st.lists(st.one_of(st.tuples(names, names, tokens), names), max_size=12)


@given(operations)
@settings(max_examples=25, deadline=None)
def test_namespaces_never_see_each_other(tmp_path_factory, operations):
    """Beside a dictionary: answers are added, a name alone clears its namespace."""
    expected: dict[tuple[str, str], list[list[int]]] = {}
    with History(tmp_path_factory.mktemp("h") / "history.sqlite") as history:
        for operation in operations:
            if isinstance(operation, str):
                gone = [key for key in expected if key[0] == operation]
                assert history.clear(operation) == sum(len(expected.pop(key)) for key in gone)
            else:
                namespace, fingerprint, answer = operation
                history.add(namespace, fingerprint, answer)
                expected.setdefault((namespace, fingerprint), []).append(answer)
        for namespace in {key[0] for key in expected} | {"", "a"}:
            for fingerprint in {key[1] for key in expected} | {"", "a"}:
                assert texts(history, namespace, fingerprint) == expected.get((namespace, fingerprint), [])
        found = {(row.namespace, row.fingerprint): (row.answers, row.tokens) for row in history.stats()}
        assert found == {key: (len(answers), sum(map(len, answers))) for key, answers in expected.items()}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 12)), max_size=12), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_the_oldest_of_all_namespaces_are_evicted(tmp_path_factory, sizes, max_tokens):
    kept: list[tuple[str, list[int]]] = []
    with History(tmp_path_factory.mktemp("h") / "history.sqlite", max_bytes=4 * max_tokens) as history:
        for i, (namespace, size) in enumerate(sizes):
            history.add(namespace, "f", [i] * size)
            if size <= max_tokens:
                kept.append((namespace, [i] * size))
            while sum(len(answer) for _, answer in kept) > max_tokens:
                kept.pop(0)
            for name in "ab":
                assert texts(history, name) == [answer for namespace, answer in kept if namespace == name]


@pytest.mark.parametrize("bad", [[-1], [2**31], [2**63], [2**64], [1, -5, 2], [1.5], [True], ["a"], [[1, 2]], [None]])
def test_what_is_no_token_is_refused(history, path, bad):
    with pytest.raises(ValueError, match=r"no integer from 0 to 2\*\*31 - 1"):
        history.add("n", "f", bad)
    assert history.stats() == [] and not path.exists()


def test_an_answer_without_tokens_is_not_kept(history):
    history.add("n", "f", [])
    assert history.stats() == []


def test_a_negative_size_is_refused(path):
    with pytest.raises(ForetokenError, match="max_bytes is -1"):
        History(path, max_bytes=-1)


def test_stats_tell_sizes_and_times(history, monkeypatch):
    for when, answer in ((5.0, [1, 2]), (3.5, [3]), (4.0, [4, 5, 6])):
        monkeypatch.setattr(history_module.time, "time", lambda when=when: when)
        history.add("n", "f", answer)
    (row,) = history.stats()
    assert (row.answers, row.tokens, row.bytes, row.oldest, row.newest) == (3, 6, 24, 3.5, 5.0)


def test_cleared_answers_leave_no_trace(history, path):
    """Not in the file and not in its log, while other answers stay."""
    secret = list(range(1_000_000, 1_002_000))
    history.add("secret", "f", secret)
    history.add("n", "f", [1, 2])
    trace = np.array(secret[500:510], "<i4").tobytes()
    assert any(trace in file.read_bytes() for file in path.parent.iterdir())
    assert history.clear("secret") == 1 and history.clear("secret") == 0
    assert not any(trace in file.read_bytes() for file in path.parent.iterdir())
    assert texts(history) == [[1, 2]] and history.clear(None) == 1 and history.stats() == []


# Where it lies


def test_reading_makes_no_file(history, path, warnings):
    assert history.answers("n", "f", 9) == [] and history.stats() == [] and history.clear(None) == 0
    assert not path.parent.exists() and warnings() == []


@POSIX
def test_answers_are_private(history, path):
    history.add("n", "f", [1])
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    assert len(files(path)) == 3  # with its logs
    history.export(path.with_name("saved.jsonl"))
    assert stat.S_IMODE(path.with_name("saved.jsonl").stat().st_mode) == 0o600


def test_the_usual_place(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_path() == History().path == tmp_path / "data" / "foretoken" / "history.sqlite"
    for none in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", none)
        assert default_path() == tmp_path / ".local" / "share" / "foretoken" / "history.sqlite"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert default_path() == tmp_path / "local" / "foretoken" / "history.sqlite"


def test_a_user_without_a_home_has_a_place_all_the_same(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert default_path().is_absolute()


def test_a_file_that_goes_away_is_begun_anew(history, path):
    history.add("n", "f", [1])
    for file in path.parent.iterdir():
        file.unlink()
    assert texts(history) == []
    history.add("n", "f", [2])
    with History(path) as another:
        assert texts(history) == texts(another) == [[2]]


# Threads, processes, and their end


def test_threads_share_one_history(history):
    def work(k: int) -> None:
        for i in range(25):
            history.add(f"n{k}", "f", [k, i])
            assert texts(history, f"n{k}")[-1] == [k, i]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [None] * 4
    for k in range(4):
        assert texts(history, f"n{k}") == [[k, i] for i in range(25)]


WRITER = """
import sys
from pathlib import Path
from foretoken.history import History
path, name, count, max_bytes = sys.argv[1:]
with History(Path(path), int(max_bytes), strict=True) as history:
    for i in range(int(count)):
        history.add(name, "f", [i] * (1 + i * 37 % 3000))
        print(i, flush=True)
"""


def writer(path: Path, name: str, count: int, max_bytes: int = 2**30) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, path, name, count, max_bytes]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)


def test_processes_share_one_file(path):
    """From its making on: nobody waits for the other to have begun it."""
    with writer(path, "a", 60) as first, writer(path, "b", 60) as second, History(path, strict=True) as history:
        seen = 0
        while first.poll() is None or second.poll() is None:
            now = len(texts(history, "a"))
            assert now >= seen
            seen = now
        assert first.returncode == second.returncode == 0
        for name in "ab":
            assert [len(answer) for answer in texts(history, name)] == [1 + i * 37 % 3000 for i in range(60)]


@POSIX
@pytest.mark.parametrize("max_bytes", [2**30, 100_000], ids=["growing", "evicting"])
def test_a_killed_process_loses_no_acknowledged_answer(path, max_bytes):
    luck = random.Random(0)
    for trial in range(4):
        with writer(path, f"t{trial}", 10**9, max_bytes) as child:
            for _ in range(luck.randrange(1, 60)):
                child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            acknowledged = [*child.stdout.read().split()]
        last = int(acknowledged[-1]) if acknowledged else None
        assert child.returncode == -signal.SIGKILL
        assert sql(path, "PRAGMA integrity_check") == [("ok",)]
        assert sql(path, "SELECT sum(length(tokens)), (SELECT bytes FROM total) FROM answers")[0][0] <= max_bytes
        assert sql(path, "SELECT sum(length(tokens)) = (SELECT bytes FROM total) FROM answers") == [(1,)]
        with History(path, max_bytes, strict=True) as history:
            found = [answer[0] for answer in texts(history, f"t{trial}")]
            assert found == list(range(found[0], found[-1] + 1))
            assert last is None or last <= found[-1] <= last + 1  # the one in flight may have come through
            if max_bytes == 2**30:
                assert found[0] == 0 and {row.namespace for row in history.stats()} == {
                    f"t{i}" for i in range(trial + 1)
                }


@POSIX
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_opens_the_file_anew(history):
    history.add("n", "f", [1])
    child = os.fork()
    if child == 0:
        try:
            history.add("n", "f", [2])
            os._exit(0 if texts(history) == [[1], [2]] else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    history.add("n", "f", [3])
    assert texts(history) == [[1], [2], [3]]


# Damaged files, and files of other versions


def spoiled(path: Path, how: str) -> None:
    """A history with an answer, then spoiled."""
    with History(path) as history:
        for i in range(200):
            history.add("n", "f", [i] * 500)
    whole = path.read_bytes()
    if how == "no database":
        path.write_bytes(b"no database " * 1000)
    elif how == "cut":
        path.write_bytes(whole[:30_000])
    elif how == "scrambled":
        path.write_bytes(whole[:8192] + random.Random(0).randbytes(len(whole) - 8192))
    elif how == "flipped":
        place = whole.index(np.full(20, 150, "<i4").tobytes()) + 40
        path.write_bytes(whole[:place] + b"\x77" + whole[place + 1 :])
    elif how == "newer":
        sql(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    elif how == "without a table":
        sql(path, "DROP TABLE answers")


SPOILED = ["no database", "cut", "scrambled", "flipped", "newer", "without a table"]


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_file_is_moved_aside(path, how, warnings):
    spoiled(path, how)
    before = path.read_bytes()
    with History(path) as history:
        assert history.answers("n", "f", 10**6) == []
        history.add("n", "f", [1, 2])
        assert texts(history) == [[1, 2]]
        assert path.with_name("history.sqlite.corrupt-1").read_bytes() == before
    assert len(warnings()) == 1 and "'history.sqlite.corrupt-1'" in warnings()[0]
    with History(path) as history:
        assert texts(history) == [[1, 2]] and len(warnings()) == 1


@pytest.mark.parametrize("how", SPOILED)
def test_a_strict_history_says_so_and_moves_nothing(path, how):
    spoiled(path, how)
    before = path.read_bytes()
    with History(path, strict=True) as history, pytest.raises(ForetokenError, match="cannot be used"):
        history.answers("n", "f", 10**6)
    assert path.read_bytes() == before and files(path) == {"history.sqlite"}


def test_an_answer_is_kept_though_the_file_was_spoiled(path, warnings):
    spoiled(path, "no database")
    with History(path) as history:
        history.add("n", "f", [7])
        assert texts(history) == [[7]] and len(warnings()) == 1


def test_damage_that_comes_while_the_file_is_open(path, warnings):
    with History(path) as history:
        for i in range(50):
            history.add("n", "f", [i] * 2000)
        history.clear("nothing")  # which empties the log, so that the file itself is read
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 4096 * 60)
        history._connection.execute("PRAGMA shrink_memory")  # SQLite would answer from the pages that it has read
        assert history.answers("n", "f", 10**6) == []
        history.add("n", "f", [1])
        assert texts(history) == [[1]]
    assert len(warnings()) == 1 and "corrupt-1" in warnings()[0]


@POSIX
def test_names_that_are_taken_stay_and_logs_move_along(path, warnings):
    path.parent.mkdir()
    path.write_bytes(b"no database" * 500)
    for end, content in (
        ("-wal", b"log"),
        ("-shm", b"index" * 10_000),
        (".corrupt-1", b"old"),
        (".corrupt-2-wal", b"o"),
    ):
        Path(f"{path}{end}").write_bytes(content)
    with History(path) as history:
        history.add("n", "f", [1])
        assert texts(history) == [[1]]
    contents = {file.name.removeprefix("history.sqlite"): file.read_bytes() for file in path.parent.iterdir()}
    assert contents.pop("")[:6] == b"SQLite"
    assert contents[".corrupt-1"] == b"old" and contents[".corrupt-2-wal"] == b"o"
    assert contents[".corrupt-3"] == b"no database" * 500 and contents[".corrupt-3-wal"] == b"log"
    assert ".corrupt-3-shm" in contents and len(contents) == 5 and len(warnings()) == 1


def test_a_file_is_moved_aside_once_by_all_who_have_it_open(path, warnings):
    with History(path) as first, History(path) as second:
        first.add("n", "f", [1])
        assert texts(second) == [[1]]
        sql(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}", "DROP TABLE answers")
        assert texts(first) == texts(second) == []
        first.add("n", "f", [2])
        second.add("n", "f", [3])
        assert texts(first) == texts(second) == [[2], [3]]
    assert len(warnings()) == 1 and files(path) >= {"history.sqlite", "history.sqlite.corrupt-1"}
    assert "history.sqlite.corrupt-2" not in files(path)


def test_many_find_the_damage_at_once(path, warnings):
    path.parent.mkdir()
    path.write_bytes(b"no database" * 500)
    start = threading.Barrier(6)

    def work(k: int) -> None:
        with History(path) as history:
            start.wait()
            for i in range(3):
                history.add(f"n{k}", "f", [i])
            assert texts(history, f"n{k}") == [[0], [1], [2]]

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(work, range(6))) == [None] * 6
    assert files(path) == {"history.sqlite", "history.sqlite.corrupt-1"} and len(warnings()) == 1


# Files that cannot be used


def does_nothing(history: History, tmp_path: Path) -> bool:
    history.add("n", "f", [1, 2])
    with gzip.open(tmp_path / "some.jsonl.gz", "wt") as out:
        out.write(json.dumps({"namespace": "n", "fingerprint": "f", "tokens": [1]}))
    assert history.import_(tmp_path / "some.jsonl.gz").answers == history.export(tmp_path / "none.jsonl") == 0
    return history.answers("n", "f", 9) == history.stats() == [] and history.clear(None) == 0


def strict_says(path: Path, said: str) -> None:
    with History(path, strict=True, timeout=0.01) as history, pytest.raises(ForetokenError, match=said) as refusal:
        history.add("n", "f", [1])
    assert str(refusal.value).endswith(".")


def test_a_folder_that_cannot_be_made(tmp_path, warnings):
    (tmp_path / "file").touch()
    with History(tmp_path / "file" / "history.sqlite") as history:
        assert does_nothing(history, tmp_path)
    assert len(warnings()) == 1 and "Not a directory" in warnings()[0]
    strict_says(tmp_path / "file" / "history.sqlite", "Not a directory")


@POSIX
@pytest.mark.parametrize("where", ["a folder", "a device"])
def test_what_is_no_file_is_left_alone(tmp_path, where, warnings):
    path = tmp_path if where == "a folder" else Path(os.devnull)
    with History(path) as history:
        assert does_nothing(history, tmp_path)
    assert len(warnings()) == 1 and "no regular file" in warnings()[0] and path.exists()


@POSIX
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_cannot_be_written(tmp_path, warnings):
    (tmp_path / "home").mkdir(mode=0o500)
    with History(tmp_path / "home" / "foretoken" / "history.sqlite") as history:
        assert does_nothing(history, tmp_path)
    assert len(warnings()) == 1 and "Permission denied" in warnings()[0]


def test_a_file_that_is_locked(path, tmp_path, warnings):
    with History(path) as history:
        history.add("n", "f", [1])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with History(path, timeout=0.01) as history:
            assert texts(history) == [[1]]  # who reads waits for nobody
            assert does_nothing(history, tmp_path)
        strict_says(path, "locked")
        other.execute("ROLLBACK")
    assert len(warnings()) == 1 and "locked" in warnings()[0]
    with History(path) as history:
        assert texts(history) == [[1]]


@pytest.mark.parametrize(
    ("pragma", "said"), [("max_page_count = 8", "full"), ("query_only = 1", "readonly")], ids=["full", "read-only"]
)
def test_a_disk_that_is_full_or_read_only(path, tmp_path, warnings, monkeypatch, pragma, said):
    """SQLite's own errors, by making it take the disk for full, or the file for one that may not be written."""
    with History(path) as history:
        history.add("n", "f", [1])
    connect = sqlite3.connect

    def hindered(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.execute(f"PRAGMA {pragma}").fetchall()
        return connection

    monkeypatch.setattr(sqlite3, "connect", hindered)
    with History(path) as history:
        history.add("n", "f", range(2**18))
        assert does_nothing(history, tmp_path)
    with History(path, strict=True) as history, pytest.raises(ForetokenError, match=said):
        history.add("n", "f", range(2**18))
    monkeypatch.undo()
    assert len(warnings()) == 1 and said in warnings()[0]
    with History(path) as history:
        assert texts(history) == [[1]]


@pytest.mark.parametrize("mark", ["PRAGMA application_id = 7", "CREATE TABLE notes (note)"])
def test_another_programs_database_is_left_alone(tmp_path, mark, warnings):
    path = tmp_path / "notes.sqlite"
    sql(path, "CREATE TABLE mine (note)", mark)
    before = path.read_bytes()
    with History(path) as history:
        assert does_nothing(history, tmp_path)
    assert len(warnings()) == 1 and "another program's" in warnings()[0]
    assert path.read_bytes() == before
    strict_says(path, "another program's")


@POSIX
def test_a_folder_that_somebody_locks(path, tmp_path, warnings):
    import fcntl

    path.parent.mkdir()
    handle = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with History(path, timeout=0.02) as history:
        assert does_nothing(history, tmp_path)
    strict_says(path, "its folder is locked")
    os.close(handle)
    assert len(warnings()) == 1 and "its folder is locked" in warnings()[0]


def test_a_closed_history_does_nothing(history, tmp_path, warnings):
    history.add("n", "f", [1])
    history.close()
    history.close()
    assert does_nothing(history, tmp_path) and warnings() == []


# Export and import


@pytest.mark.parametrize("name", ["saved.jsonl", "saved.jsonl.gz"])
def test_what_was_exported_comes_back(history, path, tmp_path, name):
    for i in range(150):
        history.add("a" if i % 3 else "b\n\0é", "f", [i, 2**31 - 1])
    assert history.export(tmp_path / name) == 150
    assert ((tmp_path / name).read_bytes()[:2] == b"\x1f\x8b") is name.endswith("gz")
    assert not list(tmp_path.glob("*.part"))
    with History(tmp_path / "other.sqlite") as other:
        result = other.import_(tmp_path / name)
        assert (result.answers, result.bad_lines) == (150, ())
        assert other.stats() == history.stats()
        assert texts(other, "a") == texts(history, "a") and texts(other, "b\n\0é") == texts(history, "b\n\0é")


def test_one_namespace_alone(history, tmp_path):
    for name in "aab":
        history.add(name, "f", [1])
    assert history.export(tmp_path / "a.jsonl", "a") == 2
    assert history.export(tmp_path / "all.jsonl") == 3
    with History(tmp_path / "other.sqlite") as other:
        assert other.import_(tmp_path / "a.jsonl", "b").answers == 0
        assert other.import_(tmp_path / "all.jsonl", "b").answers == 1
        assert [row.namespace for row in other.stats()] == ["b"]


GOOD = '{"namespace": "n", "fingerprint": "f", "tokens": [1, 2]}'
BAD = [
    "",
    "{",
    "[]",
    "7",
    "[" * 100_000,
    '{"namespace": "n", "fingerprint": "f"}',
    '{"namespace": 1, "fingerprint": "f", "tokens": [1]}',
    '{"namespace": "n", "fingerprint": null, "tokens": [1]}',
    '{"namespace": "n\\ud800", "fingerprint": "f", "tokens": [1]}',
    *(f'{{"namespace": "n", "fingerprint": "f", "tokens": {bad}}}' for bad in ("1", "[-1]", "[1.0]", "[true]", "[[]]")),
    *(f'{{"namespace": "n", "fingerprint": "f", "tokens": [{bad}]}}' for bad in (2**31, 2**64, "9" * 5000)),
    *(GOOD.replace("{", f'{{"time": {bad}, ') for bad in ("NaN", "-1", "1e99", '"now"', "true", "null")),
]


def test_bad_lines_are_passed_over(history, tmp_path):
    lines = [line for bad in BAD for line in (bad, GOOD)]
    (tmp_path / "lines.jsonl").write_bytes("\n".join(lines).encode() + b'\n\xff\xfe"\n' + GOOD.encode())
    result = history.import_(tmp_path / "lines.jsonl")
    assert result.bad_lines == (*range(1, 2 * len(BAD) + 1, 2), 2 * len(BAD) + 1)
    assert result.answers == len(BAD) + 1 and texts(history) == [[1, 2]] * result.answers


def test_files_that_cannot_be_read_or_written(history, path, tmp_path):
    history.add("n", "f", [1])
    with pytest.raises(ForetokenError, match="could not be read: No such file"):
        history.import_(tmp_path / "none.jsonl")
    with pytest.raises(ForetokenError, match="could not be written: No such file"):
        history.export(tmp_path / "none" / "none.jsonl")
    with pytest.raises(ForetokenError, match="is the history itself"):
        history.export(path)
    (tmp_path / "plain.gz").write_text(GOOD)
    with pytest.raises(ForetokenError, match="could not be read: Not a gzipped file"):
        history.import_(tmp_path / "plain.gz")
    (tmp_path / "cut.gz").write_bytes(gzip.compress((GOOD + "\n").encode() * 3)[:-8])
    with pytest.raises(ForetokenError, match="could not be read: Compressed file ended"):
        history.import_(tmp_path / "cut.gz")
    assert texts(history)[:1] == [[1]]


def test_an_export_that_fails_leaves_the_earlier_one(path, tmp_path):
    spoiled(path, "flipped")
    (tmp_path / "saved.jsonl").write_text("earlier")
    with History(path, strict=True) as history, pytest.raises(ForetokenError, match="an answer in it is damaged"):
        history.export(tmp_path / "saved.jsonl")
    assert (tmp_path / "saved.jsonl").read_text() == "earlier" and not list(tmp_path.glob("*.part"))
