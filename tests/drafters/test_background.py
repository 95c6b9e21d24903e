"""A background corpus as it is read: hashes, rows, and what is wrong with a folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counting import context_hash, q, successors
from foretoken.core.errors import ForetokenError
from foretoken.corpus import build
from foretoken.drafters.background import (
    FORMAT,
    ORDERS,
    Background,
    context_hashes,
    position_hashes,
    quantize,
)

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
