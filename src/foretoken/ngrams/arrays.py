"""The arrays of the n-gram core and what their numbers mean; importing them does not import numba.

The loops that read them and write to them are in ``kernels.py``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Addresses = NDArray[np.int64]

ORDERS = 8  # the longest context that is counted, in tokens
BACKGROUND_ORDERS = 5  # the longest context of a background corpus
WINDOW = 32  # last tokens of a context that are looked at
SEPARATOR = -1  # between sequences of one store
MAX_CANDIDATES = 32
WIDTH = 8  # children of one draft node

NAMED_ORDERS = 4  # the longest context whose successors the target named are kept
NAMED = 8  # successors of one context, the likeliest first
NAMED_CONTEXTS = 2**16  # of which a memory keeps what the target named

LOCAL, SHARED, BACKGROUND, SKIP, RECYCLED = range(5)  # the kinds of votes
KINDS = 5
SLOTS = KINDS * ORDERS + 1  # a weight for each kind and order, and a bias
STRENGTHS = 8 * 8 * 2  # of votes of one kind and order
KEYS = KINDS * ORDERS * STRENGTHS
UNNAMED = ORDERS + 1  # stands for the longest context that named a token, where the target named others only
CHOICES = (ORDERS + 1) * 6 * 4 * 4  # of the longest contexts that the stores knew
SETS = 2 * CHOICES + 1  # weights by what the stores knew, by what speaks for the candidate, and those that all share

PROB, LOGIT, SEEN = range(3)  # columns of the table
BLOCK = 16  # entries of the table that are copied together
ROW = 3 * BLOCK  # numbers in a row of weights, of which a set has SLOTS and a block all
ROWS = SETS + KEYS // BLOCK

NODE = np.dtype([(name, np.int32) for name in ("parent", "token", "count", "next", "prev", "first", "end", "total")])
SUCCESSOR = np.dtype([("token", np.int32), ("prob", np.float32)])
CANDIDATE = np.dtype([("token", np.int32), ("num_votes", np.int32), ("prob", np.float32)])
GUESS = np.dtype([("path", np.float32), ("prob", np.float32), ("token", np.int32), ("parent", np.int32)])


class Trie(NamedTuple):
    """Counts of every context of up to ORDERS tokens, and of what followed it.

    A node is a sequence of tokens and counts how often it occurred; its children are what followed, the latest first.
    A node that occurred once has no children: what followed is read from ``tokens``. Node 0 is none, node 1 the empty
    sequence.

    Args:
        tokens: int32 [capacity], all tokens in order, SEPARATOR between sequences.
        nodes: NODE [capacity]; ``end`` is the index in ``tokens`` of the last token of the latest occurrence, ``total``
            the sum of the children's counts.
        table: int32 [power of two, at least 1.5 * capacity], node of (parent, token) by hash.
        pairs: int32 [power of two], where two tokens last stood together, by hash; some tokens late.
        sizes: int64 [2], tokens and nodes in use.
        active: int32 [ORDERS + 1], the node of the last n tokens, 0 where it occurs for the first time.
    """

    tokens: Ints
    nodes: NDArray[Any]
    table: Ints
    pairs: Ints
    sizes: NDArray[np.int64]
    active: Ints


class Frozen(NamedTuple):
    """A background corpus, as ``background.py`` describes it.

    Args:
        buckets: unsigned [2**bits + 1], first row of each.
        rows: uint32 [num_rows, 2].
    """

    buckets: NDArray[Any]
    rows: NDArray[np.uint32]


class Recycled(NamedTuple):
    """What the target's logits named after contexts of 1 to NAMED_ORDERS tokens, the latest naming of each.

    Token recycling (Luo et al., arXiv 2408.08696) for longer contexts too. A context has one of NAMED_CONTEXTS places,
    by its hash, and takes it from another one that may have been there. Only places that were taken need memory.

    Args:
        table: int32 [power of two, at least twice the capacity], entry of a place by hash; 0 for none.
        entries: uint32 [capacity, 2], the place, and the low bits of the context's hash, the lowest set where it was
            committed text; entry 0 is none, and its first number says how many are in use, with itself.
        successors: SUCCESSOR [capacity, NAMED], the likeliest first; probability 0 where there is no further one.
    """

    table: Ints
    entries: NDArray[np.uint32]
    successors: NDArray[Any]


class Weights(NamedTuple):
    """What the mixer has learned: rows that many share until one of them learns, and then copies.

    The rows are SETS sets of SLOTS weights, and then the table: for each strength of vote how often such votes were
    right, the same as log(p / (1 - p)), and how many tokens it has learned from, BLOCK strengths in a row.

    Args:
        start: float32 [ROWS, ROW], where learning began; never written to.
        own: float32 [capacity, ROW], the rows that have learned.
        place: int16 [ROWS + 1], for each row its place in ``own``, -1 where it is still ``start``'s; then how many
            places are in use.
    """

    start: Floats
    own: Floats
    place: NDArray[np.int16]


class Votes(NamedTuple):
    """Room for what the stores say of one position.

    Args:
        candidates: CANDIDATE [MAX_CANDIDATES], the tokens that were voted for; ``prob`` is the votes mixed.
        keys: int32 [MAX_CANDIDATES, SLOTS], how strong the evidence of each vote was.
        known: int32 [MAX_CANDIDATES, KINDS], the longest context of each kind that voted for a candidate; UNNAMED where
            the target named others only.
        longest: int32 [KINDS], the longest context that each kind knew.
    """

    candidates: NDArray[Any]
    keys: Ints
    known: Ints
    longest: Ints


class Growth(NamedTuple):
    """Room for a draft of K nodes while it grows; row 0 is the committed context, row i + 1 node i.

    Args:
        contexts: int32 [K + 1, 2, ORDERS + 1], the contexts in the local store and in the shared one.
        windows: int32 [K + 1, WINDOW], the last tokens.
        guesses: GUESS [WIDTH * (K + 1)], nodes that may still join: probability of path and of token.
        nodes: int32 [2, K], the draft: tokens and parents.
        probs: float32 [K], of each node given its parent.
    """

    contexts: Ints
    windows: Ints
    guesses: NDArray[Any]
    nodes: Ints
    probs: Floats


def room_for_votes() -> Votes:
    """No votes yet."""
    return Votes(
        np.zeros(MAX_CANDIDATES, CANDIDATE),
        np.zeros((MAX_CANDIDATES, SLOTS), np.int32),
        np.zeros((MAX_CANDIDATES, KINDS), np.int32),
        np.zeros(KINDS, np.int32),
    )


def room_for_recycled(num_contexts: int) -> Recycled:
    """Nothing named yet, in room for so many contexts."""
    recycled = Recycled(
        np.zeros(1 << (2 * num_contexts).bit_length(), np.int32),
        np.zeros((num_contexts + 1, 2), np.uint32),
        np.zeros((num_contexts + 1, NAMED), SUCCESSOR),
    )
    recycled.entries[0, 0] = 1
    return recycled


def room_for_growth(max_tokens: int) -> Growth:
    """No draft yet."""
    rows = max_tokens + 1
    return Growth(
        np.zeros((rows, 2, ORDERS + 1), np.int32),
        np.zeros((rows, WINDOW), np.int32),
        np.zeros(WIDTH * rows, GUESS),
        np.zeros((2, max_tokens), np.int32),
        np.zeros(max_tokens, np.float32),
    )


def addresses_of(*arrays: NDArray[Any]) -> list[int]:
    """Address and length of each array, which lies in one piece; the length is that of its first axis.

    A row of a table that ``batch.py`` reads: of a Trie, or of a Trie and Weights.
    """
    return [number for array in arrays for number in (array.__array_interface__["data"][0], len(array))]


TRIE_COLUMNS = 2 * len(Trie._fields)
MEMORY_COLUMNS = TRIE_COLUMNS + 2 * len(Weights._fields)

NOTHING_RECYCLED = room_for_recycled(0)  # where a drafter does not recycle

# NumPy scalars, so that one definition wraps at 64 bits both over arrays and compiled.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
HALF = np.uint64(32)
ONE = np.uint64(1)


def extend_hashes(hashes: Any, tokens: Any) -> Any:
    """The hashes of contexts that reach one token further back, to ``tokens``; the empty context's hash is 0.

    Both are arrays of uint64, or both scalars where it is compiled.
    """
    z = hashes ^ ((tokens + ONE) * GOLDEN)
    z = (z ^ (z >> HALF)) * MULTIPLIER
    z = (z ^ (z >> HALF)) * MULTIPLIER
    return z ^ (z >> HALF)
