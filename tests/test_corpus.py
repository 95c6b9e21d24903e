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

from counting import rows_and_index
from foretoken.core.errors import ForetokenError
from foretoken.corpus import Documents, build, build_from, sources
from foretoken.corpus import counts as counts_module
from foretoken.corpus import partial as partial_module
from foretoken.corpus import tokens as tokens_module
from foretoken.corpus.sources import PIECE, cut
from foretoken.drafters.background import Background
from foretoken.tokenizing import batch_encoder, load_tokenizer

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
from foretoken.corpus import build, tokens
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
