"""The history: what it gives back, what it survives, and what it never does to generation."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import os
import random
import signal
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken import ForetokenError
from foretoken.memory import history as history_module
from foretoken.memory.history import SCHEMA_VERSION, History, default_path, sqlite_file

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


def test_many_short_answers_are_read_in_part(history):
    """Learning each takes a drafter some time, however short it is."""
    rows = [("n", "f", 1.0, struct.pack("<i", i)) for i in range(2**15 + 300)]
    history._insert(rows)
    assert texts(history) == [[i] for i in range(300, 2**15 + 300)]


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


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b" * 3000]), st.sampled_from([1, 7, 900, 5000])), max_size=30),
    st.sampled_from([0, 1000, 40_000, 65_536, 100_001]),
)
@settings(max_examples=30, deadline=None)
def test_the_oldest_of_all_namespaces_are_evicted(tmp_path_factory, sizes, max_bytes):
    """The file is never above its limit, keeps the newest, and holds two thirds of the limit once it is full."""
    path = tmp_path_factory.mktemp("h") / "history.sqlite"
    with History(path, max_bytes) as history:
        kept: list[int] = []
        for i, (namespace, size) in enumerate(sizes):
            history.add(namespace, "f", [i] * size)
            with closing(sqlite3.connect(path)) as other:
                assert other.execute("PRAGMA page_count").fetchone()[0] * 4096 <= max_bytes
            now = sorted(int(answer[0]) for name in ("a", "b" * 3000) for answer in texts(history, name))
            alone = 4 * size + 2 * len(namespace) + 32_000  # with room for an empty file and parts of pages
            assert i in now or alone > max_bytes
            assert now in (kept, [*kept, i][len(kept) + 1 - len(now) :])  # none but the oldest are gone
            if len(now) <= len(kept) and now != kept:
                assert path.stat().st_size + Path(f"{path}-wal").stat().st_size > max_bytes * 2 / 3 - alone
            kept = now


@pytest.mark.parametrize(
    ("count", "size", "namespace"), [(4500, 1, "n"), (3000, 3, "user {}"), (60, 1, "n" * 3000), (200, 250, "n")]
)
def test_the_limit_is_of_the_file_and_its_log(path, count, size, namespace):
    """Whatever takes the room: rows, names or tokens."""
    rows = [(namespace.format(i), "f", 1.0, struct.pack("<i", i) * size) for i in range(count)]
    with History(path, max_bytes=100_000) as history:
        for start in range(0, count, count // 60):
            history._insert(rows[start : start + count // 60])
        assert Path(f"{path}-wal").stat().st_size < 200_000
    assert 70_000 < path.stat().st_size <= 100_000
    assert sql(path, "SELECT max(id), tokens FROM answers") == [(count, rows[-1][3])]


def test_a_smaller_limit_makes_the_file_smaller(path):
    with History(path) as history:
        for i in range(200):
            history.add("n", "f", [i] * 1000)
    assert path.stat().st_size > 800_000
    with History(path, max_bytes=100_000) as history:
        history.add("n", "f", [200] * 1000)
        found = [answer[0] for answer in texts(history)]
        assert 10 < len(found) < 25 and found == list(range(201 - len(found), 201))
    assert path.stat().st_size <= 100_000


def test_a_log_that_others_hold_back_does_not_grow_for_ever(path, warnings):
    with History(path, max_bytes=100_000, timeout=0.01) as history:
        history.add("n", "f", [1])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM answers").fetchall()
            for i in range(1000):
                history.add("n", "f", [i] * 1000)
                if warnings():
                    break
        assert len(warnings()) == 1 and "lets its log grow" in warnings()[0]
        assert i > 20


def test_too_long_an_answer_is_not_kept(history, path):
    history.add("n", "f", np.zeros(2**20 + 1, np.int32))
    history.add("n" * (2**16 + 1), "f", [1])
    assert path.stat().st_size == 0
    history.add("n", "f", np.ones(2**20, np.int32))
    history.add("n" * 2**16, "f", [1])
    assert [row.tokens for row in history.stats()] == [2**20, 1]


@pytest.mark.parametrize("bad", [[-1], [2**31], [2**63], [2**64], [1, -5, 2], [1.5], [True], ["a"], [[1, 2]], [None]])
def test_what_is_no_token_is_refused(history, path, bad):
    with pytest.raises(ValueError, match=r"no integer from 0 to 2\*\*31 - 1"):
        history.add("n", "f", bad)
    assert history.stats() == [] and not path.exists()


def test_an_answer_without_tokens_is_not_kept(history):
    history.add("n", "f", [])
    assert history.stats() == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_bytes": -1}, "max_bytes is -1"),
        ({"max_bytes": 2.5}, "max_bytes is 2.5"),
        ({"max_bytes": float("nan")}, "max_bytes is nan"),
        ({"max_bytes": None}, "max_bytes is None"),
        ({"timeout": -1}, "timeout is -1"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"path": Path("a\0b")}, "No file"),
    ],
)
def test_arguments_out_of_range_are_refused(path, options, said):
    with pytest.raises(ForetokenError, match=said):
        History(**{"path": path, **options})
    assert History(path, np.int64(10)).max_bytes == 10


@pytest.mark.parametrize("name", ["\ud800", b"n", None, 1])
def test_a_name_that_is_no_text_is_refused(history, path, name):
    calls = [
        lambda: history.add(name, "f", [1]),
        lambda: history.add("n", name, [1]),
        lambda: history.answers(name, "f", 9),
    ]
    if name is not None:  # which is all namespaces
        calls.append(lambda: history.clear(name))
        calls.append(lambda: history.export(path.with_name("x"), name))
        calls.append(lambda: history.import_(path.with_name("x"), name))
    for call in calls:
        with pytest.raises(ForetokenError, match="is no text"):
            call()
    assert not path.parent.exists()


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
    monkeypatch.setattr(Path, "home", lambda: Path("relative"))
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
from foretoken.memory.history import History
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
        assert path.stat().st_size <= max_bytes
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


def in_child(work) -> int:
    """The status of a forked child that does this work, in twenty seconds at most."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            work()
            os._exit(0)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1]


@POSIX
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_loses_nothing_when_its_parent_closes_the_file(history, path):
    """SQLite in the child would take its parent's locks for its own, and write to a log that the parent deletes."""
    history.add("n", "f", [1])
    from_child, to_child = os.pipe(), os.pipe()

    def work():
        history.add("n", "f", [2])
        os.write(from_child[1], b"x")
        os.read(to_child[0], 1)
        history.add("n", "f", [3])

    def close():
        os.read(from_child[0], 1)
        history.close()
        os.write(to_child[1], b"x")

    with ThreadPoolExecutor(1) as thread:
        closed = thread.submit(close)
        assert in_child(work) == 0
        closed.result()
    with History(path) as again:
        assert texts(again) == [[1], [2], [3]]


@POSIX
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_writes_though_a_thread_was_at_work_when_it_came_to_be(path):
    with History(path, timeout=0.05) as history:
        history.add("n", "f", [1])
        at_work, go_on = threading.Event(), threading.Event()
        with ThreadPoolExecutor(1) as thread:
            work = thread.submit(history._use, lambda _: (at_work.set(), go_on.wait()), None)
            at_work.wait()
            status = in_child(lambda: history.add("n", "f", [2]))
            go_on.set()
            work.result()
        assert status == 0
        history.add("n", "f", [3])
        assert texts(history) == [[1], [2], [3]]


@POSIX
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_children_of_a_busy_parent_write(path):
    with History(path, strict=True, timeout=60) as history, ThreadPoolExecutor(2) as threads:
        stop = threading.Event()

        def work():
            while not stop.is_set():
                history.add("parent", "f", [1])

        working = [threads.submit(work) for _ in range(2)]
        try:
            for i in range(10):
                assert in_child(lambda i=i: history.add("child", "f", [i])) == 0
        finally:
            stop.set()
        assert [each.result() for each in working] == [None, None]
        assert texts(history, "child") == [[i] for i in range(10)]


# Damaged files, and files of other versions


def spoiled(path: Path, how: str) -> None:
    """A history with an answer, then spoiled."""
    with History(path) as history:
        for i in range(200):
            history.add("n", "f", [i] * 500)
    whole = path.read_bytes()
    if how.startswith("cut to "):
        path.write_bytes(whole[: int(how.removeprefix("cut to "))])
    elif how == "header":
        path.write_bytes(whole[:16] + b"\xff" * 40 + whole[56:])
    elif how == "schema":
        path.write_bytes(whole[:100] + b"\xff" * 3996 + whole[4096:])
    elif how == "scrambled":
        path.write_bytes(whole[:8192] + random.Random(0).randbytes(len(whole) - 8192))
    elif how == "newer":
        sql(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    elif how == "without a table":
        sql(path, "DROP TABLE answers")
    elif how == "another table":
        sql(path, "CREATE TABLE more (x)")
    elif how == "a trigger":
        sql(path, "CREATE TRIGGER t AFTER INSERT ON answers BEGIN DELETE FROM answers; END")
    elif how == "a view":  # that never ends
        counter = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT i AS id,"
        row = "'n' AS namespace, 'f' AS fingerprint, 1.0 AS time, 1 AS checksum, x'00' AS tokens FROM c WHERE i < 0"
        sql(path, "DROP TABLE answers", f"CREATE VIEW answers AS {counter} {row}")
    elif how == "a name to clear the screen":
        sql(
            path, 'CREATE TABLE "\x1b[2J" (x)', "PRAGMA writable_schema = ON", "UPDATE sqlite_master SET sql = 'CREATE'"
        )


SPOILED = [
    *(f"cut to {size}" for size in (72, 100, 4096, 4097, 30_000)),
    *("header", "schema", "scrambled", "newer", "without a table", "another table", "a trigger", "a view"),
    "a name to clear the screen",
]


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_file_is_moved_aside(path, how, warnings):
    spoiled(path, how)
    before = path.read_bytes()
    with History(path) as history:
        assert history.answers("n", "f", 10**6) == []
        history.add("n", "f", [1, 2])
        assert texts(history) == [[1, 2]]
        assert path.with_name("history.sqlite.corrupt-1").read_bytes() == before
    assert len(warnings()) == 1 and "'history.sqlite.corrupt-1'" in warnings()[0] and warnings()[0].isprintable()
    with History(path) as history:
        assert texts(history) == [[1, 2]] and len(warnings()) == 1


@pytest.mark.parametrize("how", SPOILED)
def test_a_strict_history_says_so_and_moves_nothing(path, how):
    spoiled(path, how)
    before = path.read_bytes()
    with History(path, strict=True) as history, pytest.raises(ForetokenError, match="cannot be used") as refusal:
        history.export(path.with_name("saved.jsonl"))
    assert str(refusal.value).isprintable()
    assert path.read_bytes() == before and files(path) == {"history.sqlite"}


ONE = struct.pack("<i", 7)
HOSTILE = {
    "three bytes": ("n", "f", 1.0, zlib.crc32(b"abc"), b"abc"),
    "no bytes": ("n", "f", 1.0, 0, b""),
    "a wrong checksum": ("n", "f", 1.0, 1, ONE),
    "a checksum of text": ("n", "f", 1.0, "x", ONE),
    "tokens of text": ("n", "f", 1.0, 0, "abcd"),
    "a negative token": ("n", "f", 1.0, zlib.crc32(b"\xff" * 4), b"\xff" * 4),
    "too many tokens": ("n", "f", 1.0, zlib.crc32(bytes(2**22 + 4)), bytes(2**22 + 4)),
    "no end of time": ("n", "f", float("inf"), zlib.crc32(ONE), ONE),
    "long ago": ("n", "f", -1e15, zlib.crc32(ONE), ONE),
    "time of text": ("n", "f", "now", zlib.crc32(ONE), ONE),
    "namespace of bytes": (b"\xff", "f", 1.0, zlib.crc32(ONE), ONE),
    "fingerprint of bytes": ("n", b"\xff", 1.0, zlib.crc32(ONE), ONE),
    "a very long namespace": ("n" * 2**17, "f", 1.0, zlib.crc32(ONE), ONE),
}


@pytest.mark.parametrize("row", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("strict", [False, True])
def test_a_damaged_row_costs_no_other(path, row, strict, warnings):
    with History(path) as history:
        history.add("n", "f", [1, 2])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(
            "INSERT INTO answers (namespace, fingerprint, time, checksum, tokens) VALUES (?, ?, ?, ?, ?)", row
        )
    with History(path, strict=strict) as history:
        history.add("n", "f", [3])
        assert texts(history) == [[1, 2], [3]]
        assert history.export(path.with_name("saved.jsonl")) == 2
        assert [(stats.namespace, stats.fingerprint) for stats in history.stats()] == [("n", "f")]
        assert len(warnings()) == 1 and "damaged answers" in warnings()[0]
        assert history.clear(None) == 3 and texts(history) == []


def test_a_flipped_bit_costs_its_answer_alone(path, warnings):
    with History(path) as history:
        for i in range(200):
            history.add("n", "f", [i] * 500)
    whole = path.read_bytes()
    place = whole.index(np.full(20, 150, "<i4").tobytes()) + 40
    path.write_bytes(whole[:place] + b"\x77" + whole[place + 1 :])
    with History(path) as history:
        assert [answer[0] for answer in texts(history)] == [i for i in range(200) if i != 150]
    assert len(warnings()) == 1 and "damaged answers" in warnings()[0]


def endless(path: Path, name: str) -> None:
    """A history whose table or index has pages that lead to the same page over and over: 290**4 rows and more."""
    with History(path) as history:
        for _ in range(20):
            history.add("n", "f", [1] * 1000)
    (root,) = sql(path, f"SELECT rootpage FROM sqlite_master WHERE name = '{name}'")[0]
    pages = [root, *(page for page in range(10, 15))]
    row = b"" if name == "answers" else bytes([7, 4, 15, 15, 1]) + b"nf\1"  # an index's pages have entries, too
    kind, cell_size, end = (5, 5, b"\1") if name == "answers" else (2, 4 + len(row), row)
    count = (4096 - 12) // (cell_size + 2)
    with path.open("r+b") as file:
        for page, child in itertools.pairwise(pages):
            starts = [4096 - cell_size * (i + 1) for i in range(count)]
            head = struct.pack(">BHHHBI", kind, 0, count, starts[-1], 0, child)
            cells = (struct.pack(">I", child) + end) * count
            content = head + struct.pack(f">{count}H", *starts)
            file.seek((page - 1) * 4096)
            file.write(content + bytes(4096 - len(content) - len(cells)) + cells)
        file.seek((pages[-1] - 1) * 4096)
        file.write(leaf_page(name))


def leaf_page(name: str) -> bytes:
    """A page with one row."""
    if name == "answers":
        record = bytes([7, 0, 15, 15, 7, 9, 20]) + b"nf" + struct.pack(">d", 1.0) + ONE
        cell = bytes([len(record), 1]) + record
        kind = 13
    else:
        cell = bytes([7, 4, 15, 15, 1]) + b"nf\1"
        kind = 10
    start = 4096 - len(cell)
    head = struct.pack(">BHHHBH", kind, 0, 1, start, 0, start)
    return head + bytes(start - len(head)) + cell


@pytest.mark.parametrize(
    ("name", "work", "said"),
    [
        ("answers_by_source", lambda history, _: history.stats(), "never ends"),
        ("answers", lambda history, path: history.export(path, "of nobody"), "never ends"),
        ("answers", lambda history, _: history.clear(None), "never ends|malformed"),
    ],
)
def test_rows_without_end_are_noticed(path, name, work, said):
    endless(path, name)
    with History(path, strict=True) as history, pytest.raises(ForetokenError, match=said):
        work(history, path.with_name("saved.jsonl"))


def test_an_answer_is_kept_though_the_file_was_spoiled(path, warnings):
    spoiled(path, "cut to 100")
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
    spoiled(path, "cut to 5000")
    logs = {"-wal": bytes.fromhex("377f0682") + b"log", "-shm": b"index" * 10_000}
    for end, content in (*logs.items(), (".corrupt-1", b"old"), (".corrupt-2-wal", b"o")):
        Path(f"{path}{end}").write_bytes(content)
    with History(path) as history:
        history.add("n", "f", [1])
        assert texts(history) == [[1]]
    contents = {file.name.removeprefix("history.sqlite"): file.read_bytes() for file in path.parent.iterdir()}
    assert contents.pop("")[:6] == b"SQLite"
    assert contents[".corrupt-1"] == b"old" and contents[".corrupt-2-wal"] == b"o"
    assert len(contents[".corrupt-3"]) == 5000 and contents[".corrupt-3-wal"] == logs["-wal"]
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
    spoiled(path, "cut to 5000")
    start = threading.Barrier(6)

    def work(k: int) -> None:
        with History(path) as history:
            start.wait()
            for i in range(3):
                history.add(f"n{k}", "f", [i])
            assert texts(history, f"n{k}") == [[0], [1], [2]]

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(work, range(6))) == [None] * 6
    assert not any("corrupt-2" in name for name in files(path)) and len(warnings()) == 1


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


def image() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + random.Random(0).randbytes(20_000)


STRANGERS = {
    "a text": b"Dear diary, this is my novel.\n" * 50,
    "an image": image(),
    "a byte": b"\n",
    "zeros": bytes(10_000),
    "the beginning of a database": b"SQLite format 3\0",
    "a history cut before its mark": b"SQLite format 3\0\x10\0\1\1\0\x40\x20\x20".ljust(71, b"\0"),
    "another's mark": b"SQLite format 3\0\x10\0\2\2\0\x40\x20\x20".ljust(68, b"\0") + b"mine" + bytes(5000),
}


@pytest.mark.parametrize("content", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("linked", [pytest.param(True, marks=POSIX), False])
def test_a_file_that_is_not_ours_is_left_alone(tmp_path, content, linked, warnings):
    path = novel = tmp_path / "novel.txt"
    novel.write_bytes(content)
    if linked:
        path = tmp_path / "link"
        path.symlink_to(novel)
    before = novel.stat()
    with History(path) as history:
        assert does_nothing(history, tmp_path)
    assert len(warnings()) == 1 and "no history of foretoken's" in warnings()[0] and "left alone" in warnings()[0]
    strict_says(path, "no history of foretoken's")
    assert novel.read_bytes() == content and novel.stat().st_mtime_ns == before.st_mtime_ns
    here = {"novel.txt", "some.jsonl.gz", "none.jsonl", *(["link"] if linked else [])}
    assert {file.name for file in tmp_path.iterdir()} == here


def test_reading_begins_no_history_in_an_empty_file(path, tmp_path):
    path.parent.mkdir()
    path.touch()
    with History(path, strict=True) as history:
        history.check()
        assert texts(history) == history.stats() == [] and history.clear(None) == 0
        assert history.export(tmp_path / "saved.jsonl") == 0
        assert path.stat().st_size == 0 and files(path) == {"history.sqlite"}
        history.add("n", "f", [1])
        assert texts(history) == [[1]]


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("end", ["-wal", "-shm", "-journal"])
def test_files_beside_it_that_are_not_ours_are_left_alone(path, tmp_path, begun, end, warnings):
    """SQLite would write over them."""
    path.parent.mkdir()
    if begun:
        with History(path) as history:
            history.add("n", "f", [1])
    novel = Path(f"{path}{end}")
    novel.write_text("my novel")
    with History(path) as history:
        history.add("n", "f", [1])
        assert texts(history) == []
    assert len(warnings()) == 1 and f"'history.sqlite{end}' beside it" in warnings()[0]
    strict_says(path, "is not its log")
    assert novel.read_text() == "my novel"
    novel.unlink()
    with History(path) as history:
        history.add("n", "f", [2])
        assert texts(history) == ([[1], [2]] if begun else [[2]])


@POSIX
@pytest.mark.parametrize("what", ["a pipe", "a socket", "a loop", "no file"])
def test_what_cannot_be_a_history_is_left_alone(tmp_path, what, warnings):
    path = tmp_path / "x"
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a loop":
        path.symlink_to(path)
    elif what == "no file":
        path = tmp_path / ("x" * 300)
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        if what == "a socket":
            listener.bind(os.path.relpath(path))
        before = files(path)
        with History(path) as history:
            history.check()
            history.add("n", "f", [1])
            assert texts(history) == history.stats() == [] and history.clear(None) == 0
        assert len(warnings()) == 1 and files(path) == before


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
    assert len(warnings()) == 1 and "no history of foretoken's" in warnings()[0]
    assert path.read_bytes() == before
    strict_says(path, "no history of foretoken's")


@pytest.fixture
def clock(monkeypatch):
    """Time that passes by sleeping alone."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(sqlite_file, "time", clock)
    return clock


@POSIX
@pytest.mark.parametrize("work", ["add", "answers", "stats", "clear", "export", "import", "check"])
@pytest.mark.parametrize("locked", ["file", "folder"])
def test_a_lock_costs_five_seconds_at_most(path, tmp_path, clock, warnings, work, locked):
    import fcntl

    with History(path) as history:
        history.add("n", "f", [1])
    (tmp_path / "lines").write_text(GOOD)
    handle = os.open(path.parent, os.O_RDONLY)
    history = History(path)
    calls = {
        "add": lambda: history.add("n", "f", [1]),
        "answers": lambda: texts(history),
        "stats": history.stats,
        "clear": lambda: history.clear(None),
        "export": lambda: history.export(tmp_path / "saved"),
        "import": lambda: history.import_(tmp_path / "lines"),
        "check": history.check,
    }
    with history, closing(sqlite3.connect(path, isolation_level=None)) as other:
        if locked == "folder":
            fcntl.flock(handle, fcntl.LOCK_EX)
        else:
            other.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            other.execute("BEGIN EXCLUSIVE")
            other.execute("DELETE FROM answers")
        calls[work]()
        waited = clock.now - 1000
        assert 4.9 <= waited <= 5.1 and len(warnings()) == 1 and "locked" in warnings()[0]
        for call in calls.values():
            call()
        assert clock.now - 1000 == waited and len(warnings()) == 1
    os.close(handle)


def test_a_lock_that_ends_is_waited_for(path, clock):
    with History(path) as history:
        history.add("n", "f", [1])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        sleep = clock.sleep
        clock.sleep = lambda seconds: (sleep(seconds), clock.now > 1003 and other.in_transaction and other.rollback())
        history.add("n", "f", [2])
        other.close()
        assert texts(history) == [[1], [2]] and 3 < clock.now - 1000 < 3.1


def test_deleted_answers_that_another_reads_are_told(path):
    with History(path, strict=True, timeout=0.01) as history:
        history.add("n", "f", [1])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM answers").fetchall()
            with pytest.raises(ForetokenError, match="deleted answers are still in its log"):
                history.clear("n")
        assert history.clear("n") == 0


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
    (tmp_path / "lines.jsonl").write_bytes("\n".join(lines).encode() + b'\n \n\xff\xfe"\n' + GOOD.encode())
    result = history.import_(tmp_path / "lines.jsonl")
    assert result.bad_lines == (*range(1, 2 * len(BAD) + 1, 2), 2 * len(BAD) + 2)  # a blank line is none
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
    with pytest.raises(ForetokenError, match=r"could not be read: it is no \.gz archive"):
        history.import_(tmp_path / "plain.gz")
    (tmp_path / "cut.gz").write_bytes(gzip.compress((GOOD + "\n").encode() * 3)[:-8])
    with pytest.raises(ForetokenError, match="could not be read: it is damaged or cut off"):
        history.import_(tmp_path / "cut.gz")
    assert texts(history)[:1] == [[1]]


def test_an_export_that_fails_leaves_the_earlier_one(path, tmp_path):
    spoiled(path, "scrambled")
    (tmp_path / "saved.jsonl").write_text("earlier")
    (tmp_path / "saved.jsonl.part").write_text("somebody's")
    with History(path, strict=True) as history, pytest.raises(ForetokenError, match="malformed"):
        history.export(tmp_path / "saved.jsonl")
    assert (tmp_path / "saved.jsonl").read_text() == "earlier"
    assert (tmp_path / "saved.jsonl.part").read_text() == "somebody's"
    assert {file.name for file in tmp_path.iterdir()} == {"foretoken", "saved.jsonl", "saved.jsonl.part"}


@POSIX
def test_an_export_touches_its_file_alone(history, tmp_path):
    history.add("n", "f", [1])
    old, part, victim = (tmp_path / name for name in ("old.jsonl", "old.jsonl.part", "victim"))
    victim.write_text("precious")
    part.symlink_to(victim)
    old.touch()
    old.chmod(0o666)
    (tmp_path / "link.jsonl").symlink_to(old)
    assert history.export(tmp_path / "link.jsonl") == 1
    assert victim.read_text() == "precious" and part.is_symlink() and (tmp_path / "link.jsonl").is_symlink()
    assert json.loads(old.read_text())["tokens"] == [1] and stat.S_IMODE(old.stat().st_mode) == 0o600


@POSIX
def test_an_export_goes_through_a_pipe(history, tmp_path):
    history.add("n", "f", [1])
    os.mkfifo(tmp_path / "pipe.gz")
    with ThreadPoolExecutor(1) as thread:
        read = thread.submit((tmp_path / "pipe.gz").read_bytes)
        assert history.export(tmp_path / "pipe.gz") == 1
        assert json.loads(gzip.decompress(read.result()))["tokens"] == [1]
    with ThreadPoolExecutor(1) as thread:
        written = thread.submit((tmp_path / "pipe.gz").write_bytes, gzip.compress(GOOD.encode()))
        assert history.import_(tmp_path / "pipe.gz").answers == 1
        written.result()
    assert texts(history) == [[1], [1, 2]]


@POSIX
def test_the_history_is_neither_exported_to_nor_imported_from(history, path, tmp_path):
    history.add("n", "f", [1])
    (tmp_path / "hard").hardlink_to(path)
    (tmp_path / "soft").symlink_to(path)
    for same in (path, Path(f"{path}-wal"), Path(f"{path}-shm"), tmp_path / "hard", tmp_path / "soft"):
        for call in (history.export, history.import_):
            with pytest.raises(ForetokenError, match="is the history itself"):
                call(same)
    assert texts(history) == [[1]]


def test_other_compression_than_gzip_is_refused(history, tmp_path):
    history.add("n", "f", [1])
    for call in (history.export, history.import_):
        with pytest.raises(ForetokenError, match=r"use \.gz"):
            call(tmp_path / "saved.xz")
    assert not (tmp_path / "saved.xz").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_an_import_is_read_by_its_byte_order_mark(history, tmp_path, encoding):
    (tmp_path / "marked.jsonl").write_text(f"{GOOD}\r\n", encoding=encoding, newline="")
    assert history.import_(tmp_path / "marked.jsonl").answers == 1


@pytest.mark.parametrize(
    ("unit", "said"),
    [(b" " * 2**20, "unpacks to"), (b"x\n" * 2**19, "over 10,000 lines")],
)
def test_a_file_that_unpacks_to_very_much_takes_little_memory(history, tmp_path, unit, said):
    line = gzip.compress(GOOD.encode() + b"\n")
    (tmp_path / "bomb.gz").write_bytes(line + gzip.compress(unit) * 300)
    tracemalloc.start()
    try:
        with pytest.raises(ForetokenError, match=said):
            history.import_(tmp_path / "bomb.gz")
        assert tracemalloc.get_traced_memory()[1] < 80 * 2**20
    finally:
        tracemalloc.stop()
    assert texts(history) == [[1, 2]]  # what came before


def test_load_says_at_once_that_a_file_is_no_history(tmp_path, warnings):
    import foretoken

    novel = tmp_path / "novel.txt"
    novel.write_text("my novel\n" * 100)
    lm = foretoken.load("tiny", dtype="float32", background=None, history=novel)
    assert len(warnings()) == 1 and "'" + str(novel) + "' cannot be used, and answers go on" in warnings()[0]
    assert len(lm.generate("def f(x):", max_new_tokens=4).tokens) == 4
    assert len(warnings()) == 1 and novel.read_text() == "my novel\n" * 100
    assert files(novel) == {"novel.txt"}


@pytest.mark.parametrize("end", ["-wal", "-shm", "-journal"])
def test_a_log_that_another_deletes_while_we_look_is_no_fault(path, end, warnings, monkeypatch):
    """SQLite deletes its logs when the last who uses a file closes it, in any thread or process and at any moment."""
    with History(path) as history:
        history.add("n", "f", [1])
    log, exists = Path(f"{path}{end}"), os.path.lexists
    log.touch()

    def exists_no_longer(name):
        found = exists(name)
        if str(name) == str(log):
            log.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(os.path, "lexists", exists_no_longer)
    with History(path) as history:
        assert texts(history) == [[1]]
    assert not warnings()
