"""Stage 2: count what followed every context, a part of the hashes at a time.

Every part reads all tokens and counts the contexts whose hash lies in it, in one hash table of (context, successor).
The table has a fixed size; a part that does not fit is halved. Parts follow each other in the order of the hashes, so
that rows are only ever appended, and how the hashes are divided does not show in the store.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from foretoken.memory.corpus.partial import COUNTS, FIRST, PARTIAL, TOKENS, State, flush, save
from foretoken.memory.corpus.tokens import Progress
from foretoken.ngrams.arrays import GOLDEN
from foretoken.ngrams.background import (
    HEADER,
    INDEX,
    LOG_BITS,
    ORDERS,
    ROWS,
    TOKEN_BITS,
    TOP,
    header,
    index_type,
)
from foretoken.ngrams.compiling import compiled, part
from foretoken.ngrams.kernels import extend_hash

CHUNK = 1 << 20  # tokens read at once
ROW_CHUNK = 1 << 20  # rows written at once
PER_BUCKET = 8
SLOT_BYTES = 28  # of the table, and of sorting what is in it
LOAD = 0.75
POSITION_SHIFT = np.uint64(TOKEN_BITS)
TOKEN_MASK = np.uint64((1 << TOKEN_BITS) - 1)


def index_bits(rows: int) -> int:
    """How many bits of a hash the index has, so that a bucket has about ``PER_BUCKET`` rows."""
    return max(1, round(math.log2(max(rows, 1) / PER_BUCKET)))


class Table:
    """How often, and when last, each token followed each context.

    A slot holds a context's hash, its successor and the last position of the two together, and their count; 0 is free.
    """

    def __init__(self, slots: int) -> None:
        self.hashes = np.empty(slots, np.uint64)
        self.pairs = np.empty(slots, np.uint64)  # token | position << TOKEN_BITS
        self.counts = np.zeros(slots, np.uint32)
        self.used = 0

    def clear(self) -> None:
        self.counts[:] = 0
        self.used = 0

    def add(self, tokens: NDArray[np.uint32], known: int, position: int, first: int, last: int) -> bool:
        """Count the successors ``tokens[known:]`` of contexts with hashes ``first`` .. ``last``; False if it is full.

        Args:
            tokens: Consecutive tokens.
            known: How many of them are only context.
            position: The position of the first token.
            first: The lowest hash to count.
            last: The highest.
        """
        limit = int(LOAD * len(self.counts))
        used = _add(
            tokens,
            known,
            np.uint64(position),
            np.uint64(first),
            np.uint64(last),
            self.hashes,
            self.pairs,
            self.counts,
            self.used,
            limit,
        )
        self.used = abs(used)
        return bool(used >= 0)

    def rows(self, min_count: int, shift: int, first_bucket: int, sizes: NDArray[np.uint32]) -> Iterator[Any]:
        """The rows in order, some at a time; the table is spent.

        Args:
            min_count: Successors seen less often are dropped.
            shift: What leaves a bucket of a hash.
            first_bucket: The bucket whose size is ``sizes[0]``.
            sizes: Where the rows of each bucket are counted.
        """
        _compact(self.hashes, self.pairs, self.counts)
        order = np.argsort(self.hashes[: self.used])
        out = np.empty((ROW_CHUNK + TOP, 2), np.uint32)
        start = 0
        while start < self.used:
            start, number = _rows(
                order, start, self.hashes, self.pairs, self.counts, min_count, shift, first_bucket, sizes, out
            )
            yield out[:number]


def count(folder: Path, state: State, min_count: int, memory: int, progress: Progress) -> None:
    """Write the rows of what is left of the hashes, and the index."""
    within = folder / PARTIAL
    bits = index_bits(ORDERS * state.tokens)  # there cannot be more; the index is made coarser once they are counted
    buckets = 1 << bits
    for name in (ROWS, COUNTS):
        (within / name).touch()
    with (within / ROWS).open("r+b") as rows, (within / COUNTS).open("r+b") as sizes:
        rows.truncate(HEADER + 8 * state.rows)
        rows.seek(HEADER + 8 * state.rows)
        sizes.truncate(4 * state.buckets)
        sizes.seek(4 * state.buckets)
        if state.buckets < buckets:
            _count_parts(folder, state, min_count, bits, memory, rows, sizes, progress)
        rows.seek(0)
        rows.write(header("<u4", (state.rows, 2)))
        flush(rows)
        sizes.seek(0)
        with (within / INDEX).open("wb") as index:
            _write_index(sizes, index, bits, state.rows)
    state.counted = True
    save(folder, state)


def _count_parts(
    folder: Path,
    state: State,
    min_count: int,
    bits: int,
    memory: int,
    rows: IO[bytes],
    sizes: IO[bytes],
    progress: Progress,
) -> None:
    buckets, shift = 1 << bits, 64 - bits
    most = ORDERS * state.tokens  # pairs of a context and a successor
    slots = max(1 << 10, min(memory // SLOT_BYTES, int(most / LOAD) + 64))
    table = Table(slots)
    span = max(1, min(buckets, int(buckets * 0.9 * LOAD * slots / max(most, 1))))
    if most <= LOAD * slots:
        span = buckets
    while state.buckets < buckets:
        span = min(span, buckets - state.buckets)
        first = state.buckets << shift
        last = ((state.buckets + span) << shift) - 1
        fits = True
        for tokens, known, position in _chunks(folder / PARTIAL / TOKENS, state.tokens):
            fits = table.add(tokens, known, position, first, last)
            if not fits:
                break
            share = (position + len(tokens)) / state.tokens
            progress("count", round(1000 * (state.buckets + share * span) / buckets), 1000)
        if not fits:
            table.clear()
            if span == 1:  # more contexts share a bucket than hashes that are spread evenly can bring there
                table = Table(2 * len(table.counts))
            span = max(1, span // 2)
            continue
        number = np.zeros(span, np.uint32)
        filled = table.used
        for chunk in table.rows(min_count, shift, state.buckets, number):
            rows.write(chunk.tobytes())
        sizes.write(number.tobytes())
        flush(rows)
        flush(sizes)
        state.buckets += span
        state.rows += int(number.sum(dtype=np.int64))
        save(folder, state)
        table.clear()
        # What this part held says how much the next can: contexts repeat, so the first guess was too careful.
        span = max(1, int(span * 0.9 * LOAD * slots / max(filled, 1)))


def _chunks(path: Path, number: int) -> Iterator[tuple[NDArray[np.uint32], int, int]]:
    """All tokens, some at a time: with the ones before them, how many those are, and the position of the first."""
    for start in range(0, number, CHUNK):
        known = min(start, ORDERS)
        length = min(CHUNK, number - start) + known
        yield np.fromfile(path, np.uint32, length, offset=4 * (start - known)), known, start - known


def _write_index(sizes: IO[bytes], index: IO[bytes], bits: int, rows: int) -> None:
    """Add up the sizes of the finest buckets to where the rows of each bucket of the index begin."""
    wanted = index_bits(rows)
    merge = 1 << (bits - wanted)
    dtype = np.dtype(index_type(rows))
    index.write(header(dtype.str, ((1 << wanted) + 1,)))
    index.write(np.zeros(1, dtype).tobytes())
    end = 0
    step = max(merge, CHUNK)
    for _ in range(0, 1 << bits, step):
        some = np.frombuffer(sizes.read(4 * step), np.uint32)
        ends = end + np.cumsum(some.reshape(-1, merge).sum(axis=1, dtype=np.int64))
        index.write(ends.astype(dtype).tobytes())
        end = int(ends[-1])
    flush(index)


@compiled
def _add(
    tokens: Any,
    known: int,
    position: Any,
    first: Any,
    last: Any,
    hashes: Any,
    pairs: Any,
    counts: Any,
    used: int,
    limit: int,
) -> int:
    """How many slots are used; negative if that was not enough."""
    slots = np.uint64(len(counts))
    depth = 0
    for i in range(len(tokens)):
        if tokens[i] & FIRST:
            depth = 0
        if i >= known:
            token = np.uint64(tokens[i]) & TOKEN_MASK
            pair = token | (position + np.uint64(i)) << POSITION_SHIFT
            hash_ = np.uint64(0)
            for j in range(1, depth + 1):
                hash_ = extend_hash(hash_, np.uint64(tokens[i - j]) & TOKEN_MASK)
                if hash_ < first or hash_ > last:
                    continue
                # The slot depends on both, or the successors of a frequent context would all want the same.
                mixed = (hash_ ^ (token * GOLDEN)) * GOLDEN
                slot: Any = np.int64(((mixed >> np.uint64(32)) * slots) >> np.uint64(32))
                while counts[slot] and (hashes[slot] != hash_ or pairs[slot] & TOKEN_MASK != token):
                    slot += 1
                    if slot == len(counts):
                        slot = 0
                if not counts[slot]:
                    if used == limit:
                        return -used
                    used += 1
                    hashes[slot] = hash_
                counts[slot] += np.uint32(1)
                pairs[slot] = pair
        depth = min(depth + 1, ORDERS)
    return used


@compiled
def _compact(hashes: Any, pairs: Any, counts: Any) -> None:
    """Move the used slots to the front."""
    used = 0
    for slot in range(len(counts)):
        if counts[slot]:
            hashes[used], pairs[used], counts[used] = hashes[slot], pairs[slot], counts[slot]
            used += 1


@part
def _quantize(count: int) -> Any:
    return np.uint32(min(63, 1 + round(4 * math.log2(count))) if count else 0)


@compiled
def _rows(
    order: Any,
    start: int,
    hashes: Any,
    pairs: Any,
    counts: Any,
    min_count: int,
    shift: int,
    first_bucket: int,
    sizes: Any,
    out: Any,
) -> tuple[int, int]:
    """Fill ``out`` with the rows of whole contexts from ``order[start]`` on: where it stopped, and how many rows."""
    best = np.empty(TOP, np.int64)
    number = 0
    while start < len(order) and number < len(out) - TOP:
        hash_ = hashes[order[start]]
        total, kept = 0, 0
        while start < len(order) and hashes[order[start]] == hash_:
            new = order[start]
            total += counts[new]
            start += 1
            if counts[new] < min_count:
                continue
            at = kept
            # Equal counts: the one seen last, whose position is the greatest, comes first.
            while at > 0 and (
                counts[new] > counts[best[at - 1]]
                or (
                    counts[new] == counts[best[at - 1]]
                    and pairs[new] >> POSITION_SHIFT > pairs[best[at - 1]] >> POSITION_SHIFT
                )
            ):
                if at < TOP:
                    best[at] = best[at - 1]
                at -= 1
            if at < TOP:
                best[at] = new
                kept = min(kept + 1, TOP)
        for i in range(kept):
            slot = best[i]
            out[number, 0] = np.uint32(hash_ & np.uint64(0xFFFFFFFF))
            out[number, 1] = (
                np.uint32(pairs[slot] & TOKEN_MASK)
                | _quantize(counts[slot]) << np.uint32(TOKEN_BITS)
                | _quantize(total - counts[slot]) << np.uint32(TOKEN_BITS + LOG_BITS)
            )
            number += 1
        sizes[np.int64(hash_ >> np.uint64(shift)) - first_bucket] += np.uint32(kept)
    return start, number
