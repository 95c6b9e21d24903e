"""The compiled inner loops of the n-gram core: counting, looking up, mixing votes, growing a tree of guesses.

Drafts read arrays that another thread may be appending to or learning in. Such a draft may be made of numbers half old
and half new, and is a worse draft then. But every index lies within its array and every loop ends, whatever is read. So
writers never move what is in use within an array: if there is no room, they fill larger arrays and put these in the
place of the old ones, which stay unchanged for those that still read them.

Python calls the ``compiled`` ones; the helpers are compiled as their parts. ``arrays.py`` says what the arrays
mean; the ideas are told in ``drafters/ngram.py``. This file imports numba, which takes time: others
import it within the functions that call it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from foretoken.ngrams import compiling
from foretoken.ngrams.arrays import (
    BACKGROUND,
    BACKGROUND_ORDERS,
    BLOCK,
    CHOICES,
    KINDS,
    LOCAL,
    LOGIT,
    MAX_CANDIDATES,
    NAMED,
    NAMED_CONTEXTS,
    NAMED_ORDERS,
    ORDERS,
    PROB,
    RECYCLED,
    ROWS,
    SEEN,
    SEPARATOR,
    SETS,
    SHARED,
    SKIP,
    SLOTS,
    STRENGTHS,
    UNNAMED,
    WINDOW,
    Floats,
    Frozen,
    Growth,
    Ints,
    Recycled,
    Trie,
    Votes,
    Weights,
    extend_hashes,
)

F = TypeVar("F", bound=Callable[..., Any])

MAX_BUCKET = 1024  # rows of a background corpus that are looked at: far more than hashes that are spread evenly need
SKIPS = 3  # how many tokens may lie between a context and the next token
MAX_SUCCESSORS = 6  # of one context, the most recent first
COPIED = 6  # tokens of this text that occurred before as they stand: what they then went on with is a better guide
OFFSET = np.float32(3.0)  # votes below a probability of 5 % speak against a token
MIN_NAMED = np.float32(0.008)  # what the target thinks less likely gets no vote
MIN_PROB, MAX_PROB = np.float32(0.0005), np.float32(0.999)
MAX_LOGIT = np.float32(15.0)
SHARED_RATE = np.float32(0.3)  # at which the shared weights learn, as a part of the others' rate
MIN_TABLE_RATE = np.float32(0.004)  # what a table entry learns from a token after many

# Without numba's runtime, which counts the references to every array that is handed on and would take half of the time,
# nothing can be allocated: room to work in comes with the arguments.
OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": True, "error_model": "numpy", "_nrt": False}


def compiled(function: F) -> F:
    """Compile on the first call from Python."""
    return compiling.compiled(function, **OPTIONS)


def helper(function: F) -> F:
    """Compile as a part of the functions that call it; from Python it can be called as it stands, slowly."""
    return compiling.helper(function, **OPTIONS)


def part(function: F) -> F:
    """Compile as lines of the functions that call it: for what is called from one place, and saves that a call."""
    return compiling.part(function, **OPTIONS)


extend_hash = helper(extend_hashes)


def few(number: Any) -> Any:
    """A number of occurrences, at least 0, in 8 steps."""
    if number <= 2:
        return number
    for step, most in ((3, 4), (4, 8), (5, 16), (6, 48)):
        if number <= most:
            return step
    return 7


# ``few`` of a number that a background corpus keeps as 1 + 4 log2(number).
FEW_OF_LOG = np.array([0, *(few(round(2 ** ((log - 1) / 4))) for log in range(1, 64))])
few = helper(few)

# --- Counting ---------------------------------------------------------------------------------------------------------


@helper
def place(first: int | np.int32, second: int, size: int) -> np.int64:
    """Where two numbers belong in a table of ``size``, a power of two."""
    h = np.uint64(first) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(second) * np.uint64(0xD6E8FEB86659FD93)
    h ^= h >> np.uint64(29)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(32)
    return np.int64(h & np.uint64(size - 1))


@helper
def find(nodes: NDArray[Any], table: Ints, parent: int, token: int) -> int:
    """The child of a node, 0 for none."""
    i = place(parent, token, table.size)
    while table[i] != 0:
        child = table[i]
        if nodes[child].parent == parent and nodes[child].token == token:
            return int(child)
        i = (i + 1) & (table.size - 1)
    return 0


@part
def let_find(table: Ints, parent: int | np.int32, token: int, node: int) -> None:
    """Let ``find`` find a node."""
    i = place(parent, token, table.size)
    while table[i] != 0:
        i = (i + 1) & (table.size - 1)
    table[i] = node


@compiled
def rehash(trie: Trie) -> None:
    """Fill an empty table with all nodes, and the empty table of pairs with all pairs."""
    for node in range(2, trie.sizes[1]):
        let_find(trie.table, trie.nodes[node].parent, trie.nodes[node].token, node)
    for end in range(trie.sizes[0]):
        note_pair(trie, end)


@part
def note_pair(trie: Trie, end: int) -> None:
    """Remember where two tokens stood, late enough that a pair never finds itself."""
    i = end - SKIPS - 1
    if i >= 1:
        trie.pairs[place(trie.tokens[i - 1], trie.tokens[i], trie.pairs.size)] = i


@helper
def add_node(trie: Trie, parent: np.int32, token: int, end: int) -> None:
    """A sequence that occurred for the first time, before its parent's other children."""
    nodes, table = trie.nodes, trie.table
    node = trie.sizes[1]
    trie.sizes[1] += 1
    after = nodes[parent].first
    nodes[node].parent, nodes[node].token, nodes[node].end = parent, token, end
    nodes[node].count, nodes[node].next = 1, after
    if after:
        nodes[after].prev = node
    nodes[parent].first = node
    nodes[parent].total += 1
    let_find(table, parent, token, node)


@part
def count_again(trie: Trie, parent: int, node: int) -> None:
    """Count a known sequence once more and move it before its parent's other children."""
    nodes = trie.nodes
    nodes[node].count += 1
    nodes[parent].total += 1
    first = nodes[parent].first
    if first != node:
        before, after = nodes[node].prev, nodes[node].next
        nodes[before].next = after
        if after:
            nodes[after].prev = before
        nodes[node].next, nodes[node].prev = first, 0
        nodes[first].prev = node
        nodes[parent].first = node


@helper
def append(trie: Trie, token: int) -> None:
    """Count one more token after the contexts that end here."""
    tokens, nodes, table, active = trie.tokens, trie.nodes, trie.table, trie.active
    end = trie.sizes[0]
    tokens[end] = token
    trie.sizes[0] = end + 1
    note_pair(trie, end)
    # The longest first: what a short context adds below must not be counted again by the next longer one.
    for order in range(ORDERS, -1, -1):
        context = active[order]
        node = find(nodes, table, context, token) if context else 0
        if context and node == 0:
            add_node(trie, np.int32(context), token, end)
        if node:
            count_again(trie, context, node)
            if order < ORDERS and nodes[node].count == 2:
                # Seen once until now, so without children: what followed then becomes the first.
                followed = nodes[node].end + 1
                if tokens[followed] != SEPARATOR:
                    add_node(trie, np.int32(node), tokens[followed], followed)
            nodes[node].end = end
        if order < ORDERS:
            active[order + 1] = node


@compiled
def extend(trie: Trie, new: Ints) -> int:
    """Append tokens until the room for nodes or tokens may not hold another; how many were appended.

    Negative values are separators between sequences.
    """
    for i in range(new.size):
        if trie.sizes[1] + 2 * ORDERS + 2 > trie.nodes.size or trie.sizes[0] + 2 > trie.tokens.size:
            return i
        if new[i] < 0:
            end = trie.sizes[0]
            trie.tokens[end] = SEPARATOR
            trie.sizes[0] = end + 1
            note_pair(trie, end)
            trie.active[1:] = 0
        else:
            append(trie, new[i])
    return new.size


# --- Looking up -------------------------------------------------------------------------------------------------------


@helper
def walk(trie: Trie, before: Ints, token: int, after: Ints) -> None:
    """The contexts ``after`` that the contexts ``before`` and one more token make, without counting.

    A context is a node, 0 where it is unknown, or -(end + 1) where it occurred once, its last token at ``end``.
    """
    tokens, nodes, table, num_tokens = trie.tokens, trie.nodes, trie.table, trie.sizes[0]
    for order in range(ORDERS - 1, -1, -1):
        context = before[order]
        found = 0
        if context > 0:
            node = find(nodes, table, context, token)
            if node:
                found = node if nodes[node].count > 1 else -(nodes[node].end + 1)
        elif context < 0 and -context < num_tokens and tokens[-context] == token and token != SEPARATOR:
            found = context - 1
        after[order + 1] = found
    after[0] = 1


@part
def follow(trie: Trie, window: Ints, contexts: Ints) -> None:
    """The contexts of a store that end with the last tokens of another text."""
    contexts[0] = 1
    contexts[1:] = 0
    for i in range(WINDOW - ORDERS, WINDOW):
        walk(trie, contexts, window[i], contexts)


@helper
def key_of(kind: int, order: int, count: int, other: int, latest: int | np.int64) -> int:
    """Where votes of this strength are kept: ``count`` of a token and of its competitors, both in 8 steps."""
    return int((kind * ORDERS + order - 1) * STRENGTHS + (count * 8 + other) * 2 + latest)


@helper
def vote(votes: Votes, num: int, token: int | np.int32, key: int) -> int:
    """Add a vote for a token; how many candidates there are now."""
    candidates = votes.candidates
    if token < 0:  # a separator, where another thread appends meanwhile
        return num
    i = 0
    while i < num and candidates[i].token != token:
        i += 1
    if i == MAX_CANDIDATES:
        return num
    if i == num:
        candidates[i].token, candidates[i].num_votes = token, 0
        for kind in range(KINDS):
            votes.known[i, kind] = 0
        num += 1
    slot = key // STRENGTHS
    kind, order = slot // ORDERS, slot % ORDERS + 1
    if votes.known[i, kind] < order:
        votes.known[i, kind] = order
    n = candidates[i].num_votes
    if n < SLOTS:  # more come only from a background corpus that is damaged
        votes.keys[i, n], candidates[i].num_votes = key, n + 1
    return num


@helper
def trie_votes(trie: Trie, kind: int, contexts: Ints, votes: Votes, num: int) -> int:
    """Every context votes for what followed it."""
    nodes, tokens = trie.nodes, trie.tokens
    votes.longest[kind] = 0
    for order in range(ORDERS, 0, -1):
        context = contexts[order]
        known = False
        if context < 0 and -context < trie.sizes[0] and tokens[-context] != SEPARATOR:
            num = vote(votes, num, tokens[-context], key_of(kind, order, 1, 0, 1))
            known = True
        elif context > 0:
            total, child = nodes[context].total, nodes[context].first
            known = child != 0
            latest, i = 1, 0
            while child != 0 and i < MAX_SUCCESSORS:
                count = nodes[child].count
                # Another thread may have counted the child since, and not yet its parent.
                key = key_of(kind, order, few(count), few(np.int32(max(0, total - count))), latest)
                num = vote(votes, num, nodes[child].token, key)
                child = nodes[child].next
                latest = 0
                i += 1
        if known and votes.longest[kind] == 0:
            votes.longest[kind] = order
    return num


@part
def frozen_votes(frozen: Frozen, window: Ints, votes: Votes, num: int) -> int:
    """The same from a background corpus."""
    votes.longest[BACKGROUND] = 0
    bits = 0
    while 1 << bits < frozen.buckets.size - 1:
        bits += 1
    h = np.uint64(0)
    for order in range(1, BACKGROUND_ORDERS + 1):
        token = window[WINDOW - order]
        if token < 0 or frozen.rows.shape[0] == 0:
            break
        h = extend_hash(h, np.uint64(token))
        bucket = np.int64(h >> np.uint64(64 - bits))
        check = np.uint32(h & np.uint64(0xFFFFFFFF))
        known = False
        num_rows = np.uint64(frozen.rows.shape[0])
        first, end = np.uint64(frozen.buckets[bucket]), np.uint64(frozen.buckets[bucket + 1])
        for i in range(MAX_BUCKET):
            row = first + np.uint64(i)
            if row >= end or row >= num_rows:  # whatever a damaged index says
                break
            if frozen.rows[row, 0] == check:
                packed = np.int64(frozen.rows[row, 1])
                key = key_of(BACKGROUND, order, FEW_OF_LOG[(packed >> 20) & 63], FEW_OF_LOG[packed >> 26], 0)
                num = vote(votes, num, np.int32(packed & 0xFFFFF), key)
                known = True
            elif known:
                break
        if not known:
            break  # nor is any longer context known
        votes.longest[BACKGROUND] = order
    return num


@part
def skip_votes(trie: Trie, window: Ints, votes: Votes, num: int) -> int:
    """Where the text differs in a few tokens from an earlier place, that place votes for what came after them."""
    tokens = trie.tokens
    for gap in range(1, SKIPS + 1):
        last = WINDOW - 1 - gap
        if window[last - 1] < 0:
            break
        end = trie.pairs[place(window[last - 1], window[last], trie.pairs.size)]
        after = end + gap + 1
        if end == 0 or after >= trie.sizes[0] or tokens[end] != window[last] or tokens[end - 1] != window[last - 1]:
            continue
        length = 2
        while length < WINDOW - 8 and length <= end and tokens[end - length] == window[last - length]:
            length += 1
        changed = 0
        for i in range(1, gap + 1):
            changed += tokens[end + i] != window[last + i]
        if changed and tokens[after] != SEPARATOR:
            agreed = 0 if length == 2 else 1 if length == 3 else 2 if length <= 5 else 3 if length <= 8 else 4
            latest = np.int64(tokens[after - 1] != window[WINDOW - 1])
            key = key_of(SKIP, gap, agreed + (length > 15), changed, latest)
            num = vote(votes, num, tokens[after], key)
    return num


@part
def step_of_prob(prob: float) -> int:
    """A probability in 8 steps."""
    step = 0
    for most in (0.02, 0.06, 0.15, 0.35, 0.6, 0.85, 0.97):
        step += prob > most
    return step


@helper
def place_of(h: np.uint64) -> np.uint32:
    """The place of the context of a hash."""
    return np.uint32(h >> np.uint64(40) & np.uint64(NAMED_CONTEXTS - 1))


@helper
def entry_of(recycled: Recycled, place: np.uint32) -> int:
    """Where it is said what was named after the context that has a place; 0 where none has it."""
    i = np.int64(place) & (recycled.table.size - 1)
    while recycled.table[i] != 0:
        if recycled.entries[recycled.table[i], 0] == place:
            return int(recycled.table[i])
        i = (i + 1) & (recycled.table.size - 1)
    return 0


@part
def enter(recycled: Recycled, entry: int | np.int64) -> None:
    """Let an entry be found."""
    i = np.int64(recycled.entries[entry, 0]) & (recycled.table.size - 1)
    while recycled.table[i] != 0:
        i = (i + 1) & (recycled.table.size - 1)
    recycled.table[i] = entry


@compiled
def enter_all(recycled: Recycled) -> None:
    """Fill an empty table."""
    for entry in range(1, np.int64(recycled.entries[0, 0])):
        enter(recycled, entry)


@part
def take_entry(recycled: Recycled, place: np.uint32) -> int | np.int64:
    """The entry of a place, a new one where it has none; there must be room for it."""
    entry: int | np.int64 = entry_of(recycled, place)
    if entry == 0:
        entry = np.int64(recycled.entries[0, 0])
        recycled.entries[0, 0] = entry + 1
        recycled.entries[entry, 0] = place
        enter(recycled, entry)
    return entry


@part
def recycled_votes(recycled: Recycled, window: Ints, votes: Votes, num: int) -> int:
    """What the target named after the last tokens, whenever it scored them last."""
    votes.longest[RECYCLED] = 0
    if recycled.entries[0, 0] == 1 or votes.longest[LOCAL] >= COPIED:
        return num
    h = np.uint64(0)
    for order in range(1, NAMED_ORDERS + 1):
        token = window[WINDOW - order]
        if token < 0:
            break
        h = extend_hash(h, np.uint64(token))
        entry = entry_of(recycled, place_of(h))
        if entry == 0:
            continue
        check = recycled.entries[entry, 1]
        if check | np.uint32(1) != np.uint32(h & np.uint64(0xFFFFFFFF)) | np.uint32(1):
            continue
        votes.longest[RECYCLED] = order
        for rank in range(NAMED):
            successor = recycled.successors[entry, rank]
            if successor.prob < MIN_NAMED:
                break
            key = key_of(RECYCLED, order, step_of_prob(successor.prob), rank, np.int64(check & np.uint32(1)))
            num = vote(votes, num, successor.token, key)
    return num


@helper
def name(recycled: Recycled, window: Ints, tokens: Ints, probs: Floats, kept: int) -> None:
    """Keep what the target named after contexts that end with a window; ``tokens`` and ``probs`` are [NAMED]."""
    h = np.uint64(0)
    for order in range(1, NAMED_ORDERS + 1):
        token = window[WINDOW - order]
        if token < 0:
            break
        h = extend_hash(h, np.uint64(token))
        entry = take_entry(recycled, place_of(h))
        recycled.entries[entry, 1] = np.uint32(h & np.uint64(0xFFFFFFFE)) | np.uint32(kept)
        for rank in range(NAMED):
            successor = recycled.successors[entry, rank]
            named = rank < tokens.size
            successor.token, successor.prob = tokens[rank] if named else 0, probs[rank] if named else 0


# --- Mixing -----------------------------------------------------------------------------------------------------------


@helper
def collect(
    local: Trie,
    local_contexts: Ints,
    shared: Trie,
    shared_contexts: Ints,
    frozen: Frozen,
    recycled: Recycled,
    window: Ints,
    votes: Votes,
) -> int:
    """All votes for the token after this context; the number of candidates."""
    num = trie_votes(local, LOCAL, local_contexts, votes, 0)
    num = recycled_votes(recycled, window, votes, num)
    num = trie_votes(shared, SHARED, shared_contexts, votes, num)
    num = frozen_votes(frozen, window, votes, num)
    num = skip_votes(local, window, votes, num)
    if votes.longest[RECYCLED]:
        for i in range(num):
            if votes.known[i, RECYCLED] == 0:
                votes.known[i, RECYCLED] = UNNAMED
    return num


@helper
def set_of(longest: Ints) -> int:
    """Which weights to use: they depend on the longest contexts of the stores."""
    shared, background = longest[SHARED], longest[BACKGROUND]
    shared_step = shared if shared < 4 else 4 if shared < 7 else 5
    background_step = background if background < 2 else 2 if background < 4 else 3
    recycled = longest[RECYCLED]
    recycled_step = 3 if recycled == UNNAMED else recycled if recycled < 2 else 2
    return int(((longest[LOCAL] * 6 + shared_step) * 4 + background_step) * 4 + recycled_step)


@helper
def copy(source: NDArray[Any], target: NDArray[Any]) -> None:
    """An assignment of one array to another would be allowed to allocate."""
    for i in range(source.size):
        target[i] = source[i]


@helper
def between(number: Any, least: np.float32, most: np.float32) -> Any:
    """The nearest number from ``least`` to ``most``; numba takes long to compile ``min`` and ``max``."""
    return least if number < least else most if number > most else number


@helper
def own_row(weights: Weights, row: int) -> np.int64:
    """The place in ``own`` of a row that is to be written to; there must be room for it."""
    place = np.int64(weights.place[row])
    if place < 0:
        place = np.int64(weights.place[ROWS])
        weights.place[ROWS] = place + 1
        copy(weights.start[row], weights.own[place])
        weights.place[row] = place  # last, for who reads meanwhile
    return place


@part
def logit_of(weights: Weights, key: int) -> float:
    """What a strength of vote says of a token."""
    row, column = SETS + key // BLOCK, 3 * (key % BLOCK) + LOGIT
    place = weights.place[row]
    return weights.own[place, column] if place >= 0 else weights.start[row, column]  # type: ignore[no-any-return]


@part
def has_room(weights: Weights, votes: Votes, num: int) -> bool:
    """Whether there is room for all rows that learning from these votes might write to."""
    rows = 2 + num
    for i in range(num):
        rows += votes.candidates[i].num_votes
    return bool(weights.own.shape[0] == ROWS or weights.place[ROWS] + rows <= weights.own.shape[0])


@helper
def mix(votes: Votes, num: int, weights: Weights) -> None:
    """The probability of each candidate, from its votes alone."""
    start, learned, place = weights
    row, last = set_of(votes.longest), SETS - 1
    here = learned[place[row]] if place[row] >= 0 else start[row]
    common = learned[place[last]] if place[last] >= 0 else start[last]
    for i in range(num):
        row = CHOICES + set_of(votes.known[i])
        own = learned[place[row]] if place[row] >= 0 else start[row]
        z = here[SLOTS - 1] + own[SLOTS - 1] + common[SLOTS - 1]
        for n in range(votes.candidates[i].num_votes):
            key = votes.keys[i, n]
            slot = key // STRENGTHS
            z += (here[slot] + own[slot] + common[slot]) * (logit_of(weights, key) + OFFSET)
        z = between(z, -MAX_LOGIT, MAX_LOGIT)
        votes.candidates[i].prob = 1 / (1 + math.exp(-z))


@helper
def learn(votes: Votes, num: int, weights: Weights, token: int, rate: float) -> None:
    """Move the weights and the tables towards the token that came."""
    here = weights.own[own_row(weights, set_of(votes.longest))]
    common = weights.own[own_row(weights, SETS - 1)]
    for i in range(num):
        own = weights.own[own_row(weights, CHOICES + set_of(votes.known[i]))]
        right = np.float32(votes.candidates[i].token == token)
        error = (right - votes.candidates[i].prob) * rate
        for n in range(votes.candidates[i].num_votes):
            key = votes.keys[i, n]
            slot, first = key // STRENGTHS, 3 * (key % BLOCK)
            entry = weights.own[own_row(weights, SETS + key // BLOCK)][first : first + 3]
            change = error * (entry[LOGIT] + OFFSET)
            here[slot] += change
            own[slot] += change
            common[slot] += change * SHARED_RATE
            entry[SEEN] += 1
            step = between(1 / (entry[SEEN] + np.float32(1.5)), MIN_TABLE_RATE, np.float32(1))
            prob = between(entry[PROB] + step * (right - entry[PROB]), MIN_PROB, MAX_PROB)
            entry[PROB], entry[LOGIT] = prob, math.log(prob / (1 - prob))
        here[SLOTS - 1] += error
        own[SLOTS - 1] += error
        common[SLOTS - 1] += error * SHARED_RATE


@helper
def slide(before: Ints, token: int, after: Ints) -> None:
    """The window one token later."""
    for i in range(WINDOW - 1):
        after[i] = before[i + 1]
    after[WINDOW - 1] = token


# --- Drafting ---------------------------------------------------------------------------------------------------------


@part
def open_children(
    votes: Votes, num: int, node: int, path: float, width: int, floor: float, guesses: NDArray[Any], size: int
) -> int:
    """Queue the best candidates after ``node`` whose paths are worth ``floor``; how many wait in the queue now."""
    candidates = votes.candidates
    total = np.float32(0)
    for i in range(num):
        total += candidates[i].prob
    total = total if total > 1 else np.float32(1)
    for _ in range(width if width < num else num):
        best = 0
        for i in range(1, num):
            if candidates[i].prob > candidates[best].prob:
                best = i
        prob = candidates[best].prob / total
        if path * prob < floor:
            break
        guess = guesses[size]
        guess.path, guess.prob, guess.token, guess.parent = path * prob, prob, candidates[best].token, node
        size += 1
        candidates[best].prob = -1
    return size


# --- Entry points -----------------------------------------------------------------------------------------------------
# numba hands over arrays three times faster than tuples of arrays: these take them one by one.


class Sources(NamedTuple):
    """What votes come from, what weighs them, and room to work in.

    Args:
        local: The statistics of this sequence.
        shared: Those of earlier answers.
        frozen: The background corpus.
        recycled: What the target named.
        weights: What the mixer has learned.
        votes: Room for the votes of one context.
        growth: Room for a draft.
    """

    local: Trie
    shared: Trie
    frozen: Frozen
    recycled: Recycled
    weights: Weights
    votes: Votes
    growth: Growth


@helper
def sources_of(arrays: tuple[Any, ...]) -> Sources:
    """The arrays of each field, in this order."""
    return Sources(
        Trie(*arrays[:6]),
        Trie(*arrays[6:12]),
        Frozen(*arrays[12:14]),
        Recycled(*arrays[14:17]),
        Weights(*arrays[17:20]),
        Votes(*arrays[20:24]),
        Growth(*arrays[24:29]),
    )


@helper
def learn_from(sources: Sources, window: Ints, new: Ints, rate: float) -> int:
    """What ``observe`` does."""
    local, shared, frozen, recycled, weights, votes, growth = sources
    contexts = growth.contexts[0, SHARED]
    follow(shared, window, contexts)
    for i in range(new.size):
        num = collect(local, local.active, shared, contexts, frozen, recycled, window, votes)
        if not has_room(weights, votes, num) or extend(local, new[i : i + 1]) == 0:
            return i
        mix(votes, num, weights)
        learn(votes, num, weights, new[i], rate)
        walk(shared, contexts, new[i], contexts)
        slide(window, new[i], window)
    return int(new.size)


@helper
def grow(sources: Sources, window: Ints, max_tokens: int, width: int, floor: float) -> int:
    """What ``draft`` does."""
    local, shared, frozen, recycled, weights, votes, growth = sources
    contexts, windows, guesses, nodes, probs = growth
    copy(local.active, contexts[0, LOCAL])
    copy(window, windows[0])
    follow(shared, window, contexts[0, SHARED])
    size, row, path = 0, 0, 1.0
    for node in range(max_tokens):
        num = collect(local, contexts[row, LOCAL], shared, contexts[row, SHARED], frozen, recycled, windows[row], votes)
        mix(votes, num, weights)
        size = open_children(votes, num, row - 1, path, width, floor, guesses, size)
        if size == 0:
            return node
        best = 0
        for i in range(1, size):
            if guesses[i].path > guesses[best].path:
                best = i
        path, token, parent = float(guesses[best].path), guesses[best].token, guesses[best].parent
        nodes[0, node], nodes[1, node], probs[node] = token, parent, guesses[best].prob
        size -= 1
        guesses[best] = guesses[size]
        row = node + 1
        walk(local, contexts[parent + 1, LOCAL], token, contexts[row, LOCAL])
        walk(shared, contexts[parent + 1, SHARED], token, contexts[row, SHARED])
        slide(windows[parent + 1], token, windows[row])
    return max_tokens


@compiled
def observe(window: Ints, new: Ints, rate: float, *arrays: Any) -> int:
    """Learn from committed tokens and append them to the local store; how many it and the weights had room for.

    Args:
        window: int32 [WINDOW], the last committed tokens, -1 before the first; kept up to date.
        new: The tokens.
        rate: How fast the weights learn.
        arrays: Those of ``Sources``.
    """
    return learn_from(sources_of(arrays), window, new, rate)


@compiled
def draft(window: Ints, max_tokens: int, width: int, floor: float, *arrays: Any) -> int:
    """The most probable continuations, best path first, left in ``growth``; how many there are.

    Args:
        window: int32 [WINDOW], the last committed tokens, -1 before the first.
        max_tokens: Most nodes; ``growth`` has room for them.
        width: Most children of a node.
        floor: Least probability of a path.
        arrays: Those of ``Sources``.
    """
    return grow(sources_of(arrays), window, max_tokens, width, floor)


@compiled
def chances(window: Ints, paths: Ints, named: Ints, probs: Floats, *arrays: Any) -> None:
    """How likely some tokens are after the committed text and each of some paths; left in ``probs``.

    Args:
        window: int32 [WINDOW], the last committed tokens, -1 before the first.
        paths: int32 [rows, length], guessed tokens after them.
        named: int32 [rows, k], the tokens asked about.
        probs: float32 [rows, k + 1], of each of them, 0 where nothing speaks for it; then what is left for all tokens
            that nothing speaks for.
        arrays: Those of ``Sources``.
    """
    local, shared, frozen, recycled, weights, votes, growth = sources_of(arrays)
    here, there, text = growth.contexts[1, LOCAL], growth.contexts[1, SHARED], growth.windows[1]
    follow(shared, window, growth.contexts[0, SHARED])
    for row in range(paths.shape[0]):
        copy(local.active, here)
        copy(growth.contexts[0, SHARED], there)
        copy(window, text)
        for i in range(paths.shape[1]):
            walk(local, here, paths[row, i], here)
            walk(shared, there, paths[row, i], there)
            slide(text, paths[row, i], text)
        num = collect(local, here, shared, there, frozen, recycled, text, votes)
        mix(votes, num, weights)
        total = np.float32(0)
        for i in range(num):
            total += votes.candidates[i].prob
        scale = 1 / total if total > 1 else np.float32(1)
        for j in range(named.shape[1]):
            probs[row, j] = 0
            for i in range(num):
                if votes.candidates[i].token == named[row, j]:
                    probs[row, j] = votes.candidates[i].prob * scale
        probs[row, named.shape[1]] = 1 - total * scale


@compiled
def recycle(
    window: Ints,
    tokens: Ints,
    parents: Ints,
    accepted: Ints,
    named: Ints,
    probs: Floats,
    windows: Ints,
    table: Ints,
    entries: NDArray[np.uint32],
    successors: NDArray[Any],
) -> None:
    """Keep what the target named after every row of a forward, rejected ones too.

    Args:
        window: int32 [WINDOW], the last tokens up to row 0.
        tokens: int32 [n], of the draft's nodes.
        parents: int32 [n].
        accepted: int32 [n], 1 for the nodes that became text.
        named: int32 [n + 1, k], the likeliest tokens after each row.
        probs: float32 [n + 1, k].
        windows: int32 [n + 1 or more, WINDOW], room to work in.
        table: Of ``Recycled``, which has room for NAMED_ORDERS further contexts of each row.
        entries: Of ``Recycled``.
        successors: Of ``Recycled``.
    """
    recycled = Recycled(table, entries, successors)
    copy(window, windows[0])
    for node in range(tokens.size):
        slide(windows[parents[node] + 1], tokens[node], windows[node + 1])
        if not accepted[node]:
            name(recycled, windows[node + 1], named[node + 1], probs[node + 1], 0)
    # Last what was committed, so that it is not overwritten by what was only guessed.
    name(recycled, windows[0], named[0], probs[0], 1)
    for node in range(tokens.size):
        if accepted[node]:
            name(recycled, windows[node + 1], named[node + 1], probs[node + 1], 1)
