"""The compiled loops over all rows of a batch: what ``kernels.py`` does for one sequence, in one call for many.

A row is a sequence that an engine decodes, a slot the place where its state is kept. The loops read the engine's matrix
of token ids as it stands. This file imports numba, as ``kernels.py`` does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from foretoken.ngrams import arrays
from foretoken.ngrams.addresses import viewer
from foretoken.ngrams.arrays import (
    TRIE_COLUMNS,
    WINDOW,
    Addresses,
    Floats,
    Frozen,
    Growth,
    Ints,
    Recycled,
    Trie,
    Votes,
    Weights,
)
from foretoken.ngrams.kernels import Sources, compiled, extend, grow, helper, learn_from

ints, longs, shorts = viewer(np.int32), viewer(np.int64), viewer(np.int16)
nodes = viewer(arrays.NODE)
rows_of_weights = viewer(np.float32, arrays.ROW)


@helper
def trie_at(table: Addresses, row: int) -> Trie:
    """The store whose arrays a row of a table names."""
    at = table[row]
    return Trie(
        ints(at[0], at[1]),
        nodes(at[2], at[3]),
        ints(at[4], at[5]),
        ints(at[6], at[7]),
        longs(at[8], at[9]),
        ints(at[10], at[11]),
    )


@helper
def weights_at(table: Addresses, row: int) -> Weights:
    """The mixer's weights that a row of the table of memories names."""
    at = table[row, TRIE_COLUMNS:]
    return Weights(rows_of_weights(at[0], at[1]), rows_of_weights(at[2], at[3]), shorts(at[4], at[5]))


@helper
def sources_at(stores: Addresses, slot: int, memories: Addresses, memory: int, common: tuple[Any, ...]) -> Sources:
    """What the votes for one row come from."""
    return Sources(
        trie_at(stores, slot),
        trie_at(memories, memory),
        Frozen(*common[:2]),
        Recycled(*common[2:5]),
        weights_at(memories, memory),
        Votes(*common[5:9]),
        Growth(*common[9:14]),
    )


@helper
def look_back(text: Ints, length: int, window: Ints) -> None:
    """Fill a window with the last of the first ``length`` tokens."""
    for i in range(WINDOW):
        place = length - WINDOW + i
        window[i] = text[place] if place >= 0 else -1


@compiled
def learn_rows(
    slots: Ints,
    memory_of: Ints,
    texts: Ints,
    lengths: Ints,
    counted: Ints,
    learn_after: Ints,
    stores: Addresses,
    memories: Addresses,
    rate: float,
    allowance: Ints,
    window: Ints,
    *common: Any,
) -> int:
    """Count what is new of each row's text, and let the mixer learn from what was decoded.

    Where a store or the weights have no room it stops and says which row that is. Called again it goes on there.

    Args:
        slots: int32 [rows], -1 for a row that is left out.
        memory_of: int32 [slots], the row of ``memories`` that each slot shares.
        texts: int32 [rows or more, any], the tokens of each row.
        lengths: int32 [slots], how many of them are committed.
        counted: int32 [slots], how many of them are in the store; kept up to date.
        learn_after: int32 [slots], how many of them are only counted, as a prompt is: nothing is learned from them.
        stores: int64 [slots, TRIE_COLUMNS], the addresses of each slot's store.
        memories: int64 [memories, MEMORY_COLUMNS], the addresses of shared stores and weights.
        rate: How fast the weights learn.
        allowance: int32 [1], how many tokens may be counted without learning, in all; what is left of it.
        window: int32 [WINDOW], room to work in.
        common: The arrays of ``Frozen``, ``Recycled``, ``Votes`` and ``Growth``.

    Returns:
        The first row that needs room; their number if none does.
    """
    for row in range(slots.size):
        slot = slots[row]
        if slot < 0 or counted[slot] >= lengths[slot]:
            continue
        sources = sources_at(stores, slot, memories, memory_of[slot], common)
        start, end = counted[slot], min(learn_after[slot], lengths[slot])
        if start < end:
            end = min(end, start + allowance[0])
            done = extend(sources.local, texts[row, start:end])
            counted[slot] = start + done
            allowance[0] -= done
            if start + done < end:
                return row
        start, end = counted[slot], lengths[slot]
        if start < end and start >= learn_after[slot]:
            look_back(texts[row], start, window)
            counted[slot] = start + learn_from(sources, window, texts[row, start:end], rate)
            if counted[slot] < end:
                return row
    return int(slots.size)


@compiled
def draft_rows(
    slots: Ints,
    memory_of: Ints,
    texts: Ints,
    lengths: Ints,
    counted: Ints,
    most: Ints,
    floor: float,
    stores: Addresses,
    memories: Addresses,
    tokens: Ints,
    paths: Floats,
    window: Ints,
    *common: Any,
) -> None:
    """The most probable chain after each row's text.

    Args:
        slots: As in ``learn_rows``, and so are the others of the same names.
        memory_of: int32 [slots].
        texts: int32 [rows or more, any].
        lengths: int32 [slots].
        counted: int32 [slots]. Where it is less than ``lengths`` nothing is drafted yet.
        most: int32 [rows], the most tokens of each row's draft; then how many there are.
        floor: The least probability of a path.
        stores: int64 [slots, TRIE_COLUMNS].
        memories: int64 [memories, MEMORY_COLUMNS].
        tokens: int32 [rows, any], the drafts.
        paths: float32 [rows, any], how likely each token and all before it are right; 0 after the last.
        window: int32 [WINDOW], room to work in.
        common: The arrays of ``Frozen``, ``Recycled``, ``Votes`` and ``Growth``, which has room for the longest draft.
    """
    for row in range(slots.size):
        slot, num = slots[row], 0
        if slot >= 0 and most[row] > 0 and counted[slot] == lengths[slot]:
            sources = sources_at(stores, slot, memories, memory_of[slot], common)
            look_back(texts[row], lengths[slot], window)
            num = grow(sources, window, most[row], 1, floor)
            path = np.float32(1)
            for i in range(num):
                path *= sources.growth.probs[i]
                tokens[row, i], paths[row, i] = sources.growth.nodes[0, i], path
        most[row] = num
        for i in range(num, paths.shape[1]):
            paths[row, i] = 0
