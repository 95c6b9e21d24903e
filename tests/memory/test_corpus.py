"""Building background corpora: the counts are right, nothing shows of how they were made, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken.core.errors import ForetokenError
from foretoken.memory.corpus import Documents, build, build_from, sources
from foretoken.memory.corpus import counts as counts_module
from foretoken.memory.corpus import partial as partial_module
from foretoken.memory.corpus import tokens as tokens_module
from foretoken.memory.corpus.sources import PIECE, cut
from foretoken.ngrams.background import Background
from foretoken.tokenizing import batch_encoder, load_tokenizer
from helpers.counting import rows_and_index

SMALL = 1 << 10  # bytes: the smallest table there is
NAMES = ["index.npy", "meta.json", "rows.npy"]


class Killed(BaseException):
    pass


def letters(texts):
    return [[ord(letter) for letter in text] for text in texts]


def contents(folder: Path) -> dict[str, bytes]:
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    return {name: (folder / name).read_bytes() for name in NAMES}


def random_documents(number: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[int(rng.paretovariate(0.7)) % 2000 for _ in range(rng.randrange(60))] for _ in range(number)]


@pytest.fixture
def in_small_steps(monkeypatch):
    """Batches, chunks and parts as a big corpus has them, in a small one."""
    monkeypatch.setattr(tokens_module, "BATCH", 150)
    monkeypatch.setattr(counts_module, "CHUNK", 128)
    monkeypatch.setattr(counts_module, "ROW_CHUNK", 16)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 2**20 - 1)), max_size=40), max_size=12),
    st.integers(1, 3),
)
def test_a_store_is_what_dictionaries_count(documents, min_count):
    rows, index = rows_and_index(documents, min_count)
    with tempfile.TemporaryDirectory() as folder:
        if not rows:
            with pytest.raises(ForetokenError, match=f"at least {min_count} times"):
                build(documents, None, "x", folder, min_count=min_count)
            assert not list(Path(folder).iterdir())
            return
        build(documents, None, "x", folder, min_count=min_count)
        background = Background.open(folder, "x")
        assert background.rows.tolist() == rows
        assert background.index.tolist() == index
        assert background.meta == {
            "format": 1,
            "fingerprint": "x",
            "orders": 5,
            "top": 4,
            "min_count": min_count,
            "index_bits": (len(index) - 2).bit_length(),
            "documents": len(documents),
            "tokens": sum(map(len, documents)),
            "rows": len(rows),
        }


@pytest.mark.parametrize("min_count", [1, 2])
def test_parts_and_chunks_do_not_show(tmp_path, in_small_steps, monkeypatch, min_count):
    documents = random_documents(60)
    parts = []
    build(
        documents,
        None,
        "x",
        tmp_path / "parts",
        min_count=min_count,
        memory=SMALL,
        progress=lambda *at: parts.append(at),
    )
    assert len({done for stage, done, _ in parts if stage == "count"}) > 20
    monkeypatch.undo()
    build(documents, None, "x", tmp_path / "whole", min_count=min_count)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert Background.open(tmp_path / "whole").rows.tolist() == rows_and_index(documents, min_count)[0]


def test_a_frequent_context_does_not_need_a_place_for_each_time(tmp_path):
    build([[1, 2] * 20_000], None, "x", tmp_path / "store", memory=SMALL)
    background = Background.open(tmp_path / "store")
    assert background.successors([1, 2, 1])[2] == [(2, 58, 0)]


def test_successors_of_one_context_that_exceed_the_memory_are_counted_anyway(tmp_path):
    document = [token for successor in range(1, 3000) for token in (0, successor)]
    build([document], None, "x", tmp_path / "store", memory=SMALL)
    assert [token for token, *_ in Background.open(tmp_path / "store").successors([0])[0]] == [2999, 2998, 2997, 2996]


@pytest.mark.parametrize("what", ["fsync", "replace"])
def test_a_build_killed_anywhere_goes_on_to_the_same_bytes(tmp_path, in_small_steps, monkeypatch, what):
    documents = random_documents(9)
    build(documents, None, "x", tmp_path / "whole", memory=SMALL)
    expected = contents(tmp_path / "whole")
    real = getattr(os, what)
    for moment in count(1):
        calls = count(1)

        def kill(*args, moment=moment, calls=calls):
            if next(calls) == moment:
                raise Killed
            return real(*args)

        folder = tmp_path / str(moment)
        with monkeypatch.context() as patch:
            patch.setattr(os, what, kill)
            try:
                build(documents, None, "x", folder, memory=SMALL)
            except Killed:
                pass
            else:
                assert moment > 10
                return
        # What was being written may be there in part.
        state = folder / "partial" / "state.json"
        if not state.exists() or not json.loads(state.read_bytes())["counted"]:
            for name in ("tokens.bin", "counts.bin", "rows.npy"):
                path = folder / "partial" / name
                if path.exists():
                    path.write_bytes(path.read_bytes() + b"half")
        if (folder / "partial").exists():
            build(documents, None, "x", folder, memory=SMALL)
        assert contents(folder) == expected


def test_what_was_done_is_not_done_again(tmp_path, in_small_steps):
    def stop(stage, done, total):
        if stage == "count" and done > total / 2:
            raise Killed

    class Once(Documents):
        def pieces(self):
            raise AssertionError("read again")

    documents = random_documents(60)
    with pytest.raises(Killed):
        build(documents, None, "x", tmp_path / "store", memory=SMALL, progress=stop)
    shares = []
    build_from([Once([])], None, "x", tmp_path / "store", memory=SMALL, progress=lambda *at: shares.append(at[1]))
    assert min(shares) > 400
    build(documents, None, "x", tmp_path / "whole")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


SLOW = """
import sys, time
from foretoken.memory.corpus import build, tokens
tokens.BATCH = 100
def documents():
    for i in range(400):
        time.sleep(0.02)
        yield [i * j % 17 for j in range(60)]
    time.sleep(3600)  # it never ends by itself
build(documents(), None, "x", sys.argv[1])
"""


def test_kill_9(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path / "store")])
    try:
        state = tmp_path / "store" / "partial" / "state.json"
        deadline = time.monotonic() + 600
        while not (state.exists() and json.loads(state.read_bytes())["tokens"] > 1000):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    documents = [[i * j % 17 for j in range(60)] for i in range(400)]
    build(documents, None, "x", tmp_path / "store")
    build(documents, None, "x", tmp_path / "whole")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.parametrize("module", [tokens_module, counts_module, partial_module])
def test_a_full_disk_is_a_sentence_and_nothing_is_lost(tmp_path, monkeypatch, module):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "flush", full)
        with pytest.raises(ForetokenError, match=r"the disk is full: make room, and run the same again, which goes on"):
            build(["abcabd" * 9], letters, "x", tmp_path / "store")
    build(["abcabd" * 9], letters, "x", tmp_path / "store")
    build(["abcabd" * 9], letters, "x", tmp_path / "whole")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprint": "y"}, "another tokenizer"),
        ({"min_count": 2}, "another min_count"),
        ({"documents": Documents([[1]], name="others")}, "other files"),
    ],
)
def test_another_build_does_not_go_on_unless_forced(tmp_path, change, words):
    def stop(*at):
        raise Killed

    first = {"documents": Documents([[1, 2, 1, 2, 1]]), "fingerprint": "x", "min_count": 1}

    def start(what, **options):
        sources_ = [what["documents"]]
        build_from(sources_, None, what["fingerprint"], tmp_path / "store", min_count=what["min_count"], **options)

    with pytest.raises(Killed):
        start(first, progress=stop)
    with pytest.raises(ForetokenError, match=words):
        start(first | change)
    if "documents" not in change:
        start(first | change, force=True)
        meta = Background.open(tmp_path / "store").meta
        assert {"fingerprint": meta["fingerprint"], "min_count": meta["min_count"]}.items() >= change.items()


def test_a_store_is_replaced_only_by_force_and_only_at_the_end(tmp_path):
    build([[1, 2, 1, 2]], None, "x", tmp_path / "store")
    before = contents(tmp_path / "store")
    with pytest.raises(ForetokenError, match="holds a store already"):
        build([[3, 4, 3]], None, "x", tmp_path / "store")

    def stop(stage, done, total):
        if stage == "count":
            raise Killed

    with pytest.raises(Killed):
        build([[3, 4, 3]], None, "x", tmp_path / "store", force=True, progress=stop)
    assert Background.open(tmp_path / "store").successors([1])[0]
    build([[3, 4, 3]], None, "x", tmp_path / "store", force=True)
    assert contents(tmp_path / "store") != before
    assert Background.open(tmp_path / "store").successors([3])[0] == [(4, 1, 0)]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("other", ["notes.txt", "partial/notes.txt", "meta.json"])
def test_a_folder_that_holds_something_else_is_refused(tmp_path, other, force):
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_text("{}")
    with pytest.raises(ForetokenError, match="holds something else"):
        build([[1, 2]], None, "x", tmp_path, force=force)
    assert (tmp_path / other).read_text() == "{}"


@pytest.mark.parametrize("token", [-1, 1 << 20])
def test_tokens_that_do_not_fit_are_refused(tmp_path, token):
    with pytest.raises(ForetokenError, match=f"The token {token} does not fit"):
        build([[1, token]], None, "x", tmp_path / "store")


def test_a_min_count_of_nothing_and_text_without_an_encode_are_refused(tmp_path):
    with pytest.raises(ForetokenError, match="min_count is 0"):
        build([[1, 2]], None, "x", tmp_path / "store", min_count=0)
    with pytest.raises(ForetokenError, match="give an encode"):
        build(["ab"], None, "x", tmp_path / "store")


def test_text_and_arrays_of_any_type_are_documents(tmp_path):
    documents = ["abcab", np.array([97, 98, 99], np.uint8), np.array([97, 98, 99]), (97, 98)]
    build(documents, letters, "x", tmp_path / "store")
    assert (
        Background.open(tmp_path / "store").rows.tolist()
        == rows_and_index([[97, 98, 99, 97, 98], [97, 98, 99], [97, 98, 99], [97, 98]])[0]
    )


def test_pieces_have_the_tokens_of_the_whole_text(tmp_path, monkeypatch):
    text = "".join(f"def f{i}(x):\n    return x + {i}\n\n\n" for i in range(400)) + "the end"
    encode = batch_encoder(load_tokenizer("tiny"))
    monkeypatch.setattr(sources, "PIECE", 500)
    pieces = list(cut([text[i : i + 70] for i in range(0, len(text), 70)]))
    assert len(pieces) > 20 and max(map(len, pieces)) <= 500 and "".join(pieces) == text
    assert [token for ids in encode(pieces) for token in ids] == encode([text])[0]


def test_a_text_without_lines_is_cut_too():
    text = "x" * (2 * PIECE + 5)
    assert [len(piece) for piece in cut([text])] == [PIECE, PIECE, 5]
    assert list(cut([""])) == [""] == list(cut([]))


WORDS = [[1, 2, 3, 1, 2, 4] * 5, [7, 8, 7, 8]]


def stop_at(stage):
    def stop(at, done, total):
        if at == stage:
            raise Killed

    return stop


def stopped(folder, stage="count"):
    """An unfinished build of ``WORDS``."""
    with pytest.raises(Killed):
        build(WORDS, None, "x", folder, progress=stop_at(stage))
    return folder / "partial"


def finished(folder):
    build(WORDS, None, "x", folder)
    return contents(folder)


def with_state(**changes):
    def damage(partial):
        state = json.loads((partial / "state.json").read_bytes()) | changes
        (partial / "state.json").write_text(json.dumps(state))

    return damage


def with_text(name, text):
    return lambda partial: (partial / name).write_text(text)


@pytest.mark.parametrize(
    "damage",
    [
        *(
            with_text(name, text)
            for name in ("inputs.json", "state.json")
            for text in (
                "",
                "{",
                "[]",
                "3",
                "null",
                '"x"',
                '{"foo": 1}',
                "[" * 100_000,
                "{\x00}",
                '{"a": ' + "1" * 5000 + "}",
            )
        ),
        with_text("inputs.json", '{"format": 1, "fingerprint": "x", "min_count": 1, "inputs": 3}'),
        with_text("inputs.json", '{"format": 1, "fingerprint": "x", "min_count": 1, "inputs": [3]}'),
        with_text("inputs.json", '{"format": 1, "fingerprint": "x", "min_count": 1, "inputs": [[]]}'),
        *(
            with_state(**{field: value})
            for field in ("source", "pieces", "documents", "tokens", "buckets", "rows")
            for value in (-1, "1", 1.5, None, True, [], 1 << 64)
        ),
        *(with_state(**{field: value}) for field in ("fresh", "tokenized", "counted") for value in (1, None, "true")),
        with_state(bad=[]),
        with_state(bad={"a": 3}),
        with_state(bad={"a": ["x"]}),
        with_state(source=1),
        with_state(tokens=10_000),
        with_state(buckets=10_000),
        with_state(rows=10_000),
        with_state(counted=True),
        with_state(tokenized=False, buckets=1),
        lambda partial: (partial / "tokens.bin").unlink(),
        lambda partial: (partial / "tokens.bin").write_bytes(b"half"),
    ],
)
def test_an_unfinished_build_that_is_damaged_is_a_sentence_and_dropped_by_force(tmp_path, damage):
    expected = finished(tmp_path / "whole")
    damage(stopped(tmp_path / "store"))
    with pytest.raises(
        ForetokenError, match=r"holds an unfinished build (that is damaged|with .+): .*begin anew by force"
    ):
        build(WORDS, None, "x", tmp_path / "store")
    build(WORDS, None, "x", tmp_path / "store", force=True)
    assert contents(tmp_path / "store") == expected


def test_counts_that_do_not_fit_are_found_at_the_end_and_dropped(tmp_path, monkeypatch):
    partial = tmp_path / "store" / "partial"

    def damage(*arguments):
        (partial / "index.npy").write_bytes(b"half")
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sys.modules["foretoken.memory.corpus.build"], "_put_in_place", damage)
        build(WORDS, None, "x", tmp_path / "store")
    with pytest.raises(ForetokenError, match="is damaged"):
        build(WORDS, None, "x", tmp_path / "store")
    assert finished(tmp_path / "store") == finished(tmp_path / "whole")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"index_bits": "x"}'])
def test_a_store_that_is_damaged_is_replaced_by_force(tmp_path, text):
    finished(tmp_path / "store")
    (tmp_path / "store" / "meta.json").write_text(text)
    with pytest.raises(ForetokenError, match="holds a store already"):
        build(WORDS, None, "x", tmp_path / "store")
    build(WORDS, None, "x", tmp_path / "store", force=True)
    assert contents(tmp_path / "store") == finished(tmp_path / "whole")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "name", ["partial/tokens.bin", "partial/state.json.new", "meta.json.new", "rows.npy", "partial"]
)
def test_nothing_is_written_through_a_link(tmp_path, name, force):
    stopped(tmp_path / "store")
    link = tmp_path / "store" / name
    if name == "partial":
        link.rename(tmp_path / "novel")
        before = sorted((tmp_path / "novel").iterdir())
    else:
        link.unlink(missing_ok=True)
        (tmp_path / "novel").write_text("Once upon a time")
    link.symlink_to(tmp_path / "novel")
    with pytest.raises(ForetokenError, match="holds something else"):
        build(WORDS, None, "x", tmp_path / "store", force=force)
    if name == "partial":
        assert sorted((tmp_path / "novel").iterdir()) == before
    else:
        assert (tmp_path / "novel").read_text() == "Once upon a time"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_nobody_waits_for_a_pipe(tmp_path):
    partial = stopped(tmp_path / "store")
    (partial / "state.json").unlink()
    os.mkfifo(partial / "state.json")
    with pytest.raises(ForetokenError, match="holds something else"):
        build(WORDS, None, "x", tmp_path / "store", force=True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs locks of folders")
def test_a_second_build_of_one_store_is_refused_while_the_first_is_at_work(tmp_path):
    """In another process, until that one ends in whatever way."""
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path / "store")])
    documents = [[i * j % 17 for j in range(60)] for i in range(400)]
    try:
        deadline = time.monotonic() + 600
        while not (tmp_path / "store" / "partial" / "state.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        for force in (False, True):
            with pytest.raises(
                ForetokenError, match=r"Another process builds in the folder .*: wait until it has ended"
            ):
                build(documents, None, "x", tmp_path / "store", force=force)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    build(documents, None, "x", tmp_path / "store")
    build(documents, None, "x", tmp_path / "whole")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["min_count", "memory"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, float("nan"), float("inf"), "2", None, True, 1 << 70])
def test_numbers_that_are_none_are_refused(tmp_path, name, value):
    with pytest.raises(ForetokenError, match=f"{name} is .*: give a whole number from 1 to"):
        build(WORDS, None, "x", tmp_path / "store", **{name: value})
    assert not (tmp_path / "store").exists()


def test_numbers_of_numpy_are_numbers(tmp_path):
    build(WORDS, None, "x", tmp_path / "store", min_count=np.int64(1), memory=np.uint32(SMALL))
    assert contents(tmp_path / "store") == finished(tmp_path / "whole")


@pytest.mark.parametrize(
    "document", [None, 5, 1.5, [1.5], [1, None], ["a"], [[1, 2], [3]], [[1, 2]], b"bytes", {1: 2}, [True], [b"a"]]
)
def test_what_is_no_document_is_a_sentence(tmp_path, document):
    with pytest.raises(ForetokenError, match="neither text nor a list of tokens"):
        build([[1, 2, 1, 2], document], None, "x", tmp_path / "store")


@pytest.mark.parametrize("token", [1 << 63, 1 << 64, 1 << 100, -(1 << 100)])
def test_tokens_of_any_size_are_refused(tmp_path, token):
    with pytest.raises(ForetokenError, match=f"The token {token} does not fit"):
        build([[1, token]], None, "x", tmp_path / "store")


@pytest.mark.parametrize("fingerprint", [None, 3, b"x", "\x1b[2J", "x" * 1000])
def test_a_fingerprint_that_no_store_can_have_is_refused(tmp_path, fingerprint):
    with pytest.raises(ForetokenError, match="The fingerprint is"):
        build(WORDS, None, fingerprint, tmp_path / "store")


def test_too_little_memory_is_a_sentence(tmp_path, monkeypatch):
    def none_left(slots):
        raise MemoryError

    monkeypatch.setattr(counts_module, "Table", none_left)
    with pytest.raises(ForetokenError, match="There are no 1073741824 bytes of memory left"):
        build(WORDS, None, "x", tmp_path / "store")
