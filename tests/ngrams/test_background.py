"""A background corpus as it is read: hashes, rows, and what is wrong with a folder."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretoken.core.errors import ForetokenError
from foretoken.drafters.ngram import NgramMixer
from foretoken.memory.corpus import build
from foretoken.ngrams.background import (
    FIELDS,
    FORMAT,
    ORDERS,
    Background,
    context_hashes,
    position_hashes,
    quantize,
)
from foretoken.ngrams.shared import SharedNgrams
from helpers.counting import context_hash, q, successors

TOKENS = st.integers(0, 2**20 - 1)
DOCUMENTS = [[1, 2, 3, 1, 2, 4, 1, 2, 3], [2, 3, 1], [], [7]]


@pytest.fixture
def store(tmp_path):
    build(DOCUMENTS, None, "0123456789abcdef", tmp_path / "store")
    return tmp_path / "store"


@given(st.lists(TOKENS, max_size=9))
def test_hashes_are_those_of_the_format(tokens):
    expected = [context_hash(tokens[-n:]) for n in range(1, min(len(tokens), ORDERS) + 1)]
    assert context_hashes(tokens) == expected


@given(st.lists(TOKENS, max_size=20))
def test_hashes_of_all_positions_are_those_of_each(tokens):
    for order, hashes in enumerate(position_hashes(tokens), start=1):
        assert hashes.tolist() == [context_hash(tokens[i - order : i]) for i in range(order, len(tokens))]


@given(st.integers(0, 2**40))
def test_counts_are_quantized_as_the_format_says(count):
    assert quantize(count) == q(count) <= 63


def test_successors_of_every_context(store):
    background = Background.open(store, "0123456789abcdef")
    for context, expected in successors(DOCUMENTS).items():
        found = background.successors([9, 9, *context])
        assert len(found) == min(ORDERS, len(context) + 2)
        assert found[len(context) - 1] == expected
        assert not any(found[len(context) :])  # documents hold no 9
    assert background.successors([2])[0] == [(3, q(3), q(1)), (4, q(1), q(3))]
    assert background.successors([]) == []


def test_arrays_are_mapped_not_read(store):
    background = Background.open(store)
    assert isinstance(background.rows, np.memmap) and isinstance(background.index, np.memmap)
    assert background.nbytes == background.rows.nbytes + background.index.nbytes


def test_another_tokenizer_is_refused(store):
    with pytest.raises(ForetokenError, match="another tokenizer"):
        Background.open(store, "fedcba9876543210")


def test_no_folder_and_no_store_are_refused(tmp_path):
    with pytest.raises(ForetokenError, match="There is no background corpus"):
        Background.open(tmp_path / "none")
    with pytest.raises(ForetokenError, match=r"no finished background corpus: it has no meta\.json"):
        Background.open(tmp_path)


def test_a_newer_format_is_refused_whatever_else_it_changes(store):
    (store / "meta.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(ForetokenError, match=f"has format {FORMAT + 1}"):
        Background.open(store)


def _without(store, name):
    (store / name).unlink()


def _shorter(store, name):
    (store / name).write_bytes((store / name).read_bytes()[:-8])


def _of_other_rows(store, name):
    np.save(store / "rows.npy", np.zeros((3, 2), np.uint32))


def _without_a_field(store, name):
    (store / "meta.json").write_text('{"format": 1, "fingerprint": "0123456789abcdef"}')


def _no_json(store, name):
    (store / "meta.json").write_text("[")


@pytest.mark.parametrize("name", ["rows.npy", "index.npy"])
@pytest.mark.parametrize("damage", [_without, _shorter, _of_other_rows, _without_a_field, _no_json])
def test_a_damaged_store_is_refused(store, name, damage):
    damage(store, name)
    with pytest.raises(ForetokenError, match="is damaged"):
        Background.open(store)


def with_meta(**changes):
    def change(store):
        meta = json.loads((store / "meta.json").read_bytes()) | changes
        (store / "meta.json").write_text(json.dumps({name: value for name, value in meta.items() if value is not None}))

    return change


def with_file(name, content):
    return lambda store: (store / name).write_bytes(content)


def as_npy(value, **options):
    file = io.BytesIO()
    np.save(file, value, **options)
    return file.getvalue()


def as_npz():
    file = io.BytesIO()
    np.savez(file, rows=np.zeros(3))
    return file.getvalue()


def other_order(store):
    rows = np.load(store / "rows.npy")
    (store / "rows.npy").write_bytes(as_npy(np.asfortranarray(rows)))


def other_bytes(store):
    rows = np.load(store / "rows.npy")
    (store / "rows.npy").write_bytes(as_npy(rows.astype(">u4")))


def without_its_end(store):
    index = np.load(store / "index.npy")
    content = (store / "index.npy").read_bytes()[:-4]
    (store / "index.npy").write_bytes(content + (index[-1] + 1).tobytes())


def as_pipe(name):
    def change(store):
        (store / name).unlink()
        os.mkfifo(store / name)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        *(with_meta(**{field: value}) for field in FIELDS for value in (None, "x\x1b[2J", [], -1, 1.0, True, 10**40)),
        *(with_meta(tokens=value) for value in (0, 1 << 63)),
        *(with_meta(rows=value) for value in (0, 1 << 40, (1 << 63) - 1)),
        *(with_meta(index_bits=value) for value in (1 << 20, 63, 64)),
        with_file("meta.json", b"[" * 100_000),
        with_file("meta.json", b"[]"),
        with_file("meta.json", b'"format"'),
        with_file("meta.json", b"\xff\xfe\x00"),
        with_file("meta.json", b'{"format": ' + b"1" * 5000 + b"}"),
        with_file("meta.json", b" " * (1 << 20) + b"{}"),
        with_file("index.npy", as_npz()),
        with_file("index.npy", as_npy(np.array([{}], object), allow_pickle=True)),
        with_file("index.npy", pickle.dumps([1])),
        with_file("index.npy", as_npy(np.zeros(3, np.float64))),
        with_file("rows.npy", as_npy(np.zeros((1, 2), np.uint32))),
        with_file("rows.npy", b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 118),
        other_order,
        other_bytes,
        without_its_end,
    ],
)
def test_a_hostile_store_is_one_sentence(store, damage):
    damage(store)
    with pytest.raises(ForetokenError, match=r"is damaged|another tokenizer|has format \d+,") as raised:
        Background.open(store, "0123456789abcdef")
    assert str(raised.value).isprintable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", ["meta.json", "rows.npy", "index.npy"])
def test_nobody_waits_for_a_pipe(store, name):
    as_pipe(name)(store)
    with pytest.raises(ForetokenError, match=r"is damaged|no finished background corpus"):
        Background.open(store)


@pytest.mark.parametrize("name", ["meta.json", "rows.npy", "index.npy"])
def test_a_store_that_may_not_be_read_is_said_to_be_that(store, name, monkeypatch):
    real = Path.open

    def refused(path, *arguments, **options):
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ForetokenError, match="could not be read: Permission denied"):
        Background.open(store)


def test_what_else_meta_says_is_left_out(store):
    with_meta(note="\x1b[2J")(store)
    assert tuple(Background.open(store).meta) == FIELDS


def test_a_store_by_a_link_is_read(store, tmp_path):
    (tmp_path / "link").symlink_to(store)
    assert len(Background.open(tmp_path / "link").rows) == len(Background.open(store).rows)


def test_a_bucket_of_a_hostile_store_is_not_read_without_end():
    """One that holds every row would make each look-up read the whole file."""
    (hash_,) = context_hashes([5])
    for place, known in ((900, True), (1_000_000, False)):
        rows = np.zeros((1_000_001, 2), np.uint32)
        rows[:, 0] = ~np.uint32(hash_ & 0xFFFFFFFF)
        rows[place] = hash_ & 0xFFFFFFFF, 7 | quantize(9) << 20
        index = np.array([0, len(rows), len(rows)] if hash_ >> 63 == 0 else [0, 0, len(rows)], np.uint32)
        drafter = NgramMixer(SharedNgrams(Background({}, index, rows)), floor=0.0)
        drafter.begin([5])
        assert (7 in drafter.propose([5], 8).tokens) == known
