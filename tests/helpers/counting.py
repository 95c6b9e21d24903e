"""Background corpora counted with dictionaries and hashed with Python's integers: slow, and nothing shared."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

WORD = (1 << 64) - 1


def mix(z: int) -> int:
    for _ in range(2):
        z ^= z >> 32
        z = z * 0xD6E8FEB86659FD93 & WORD
    return z ^ z >> 32


def context_hash(context: Sequence[int]) -> int:
    h = 0
    for token in reversed(context):
        h = mix(h ^ (token + 1) * 0x9E3779B97F4A7C15 & WORD)
    return h


def q(count: int) -> int:
    return 0 if count == 0 else min(63, 1 + round(4 * math.log2(count)))


def successors(
    documents: Iterable[Sequence[int]], min_count: int = 1
) -> dict[tuple[int, ...], list[tuple[int, int, int]]]:
    """For every context, the (token, log_count, log_other) that a store has."""
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    seen: dict[tuple[tuple[int, ...], int], int] = {}
    clock = 0
    for document in documents:
        for i, token in enumerate(document):
            clock += 1
            for n in range(1, min(5, i) + 1):
                context = tuple(document[i - n : i])
                counts[context][token] += 1
                seen[context, token] = clock
    store = {}
    for context, counter in counts.items():
        total = counter.total()
        best = sorted(counter, key=lambda token: (-counter[token], -seen[context, token]))
        kept = [token for token in best if counter[token] >= min_count][:4]
        store[context] = [(token, q(counter[token]), q(total - counter[token])) for token in kept]
    return store


def rows_and_index(documents: Iterable[Sequence[int]], min_count: int = 1) -> tuple[list[list[int]], list[int]]:
    """The whole of a store."""
    hashed = sorted((context_hash(context), kept) for context, kept in successors(documents, min_count).items())
    rows = [
        [h & 0xFFFFFFFF, token | log_count << 20 | log_other << 26]
        for h, kept in hashed
        for token, log_count, log_other in kept
    ]
    bits = max(1, round(math.log2(max(1, len(rows)) / 8)))
    index = [0] * (2**bits + 1)
    for h, kept in hashed:
        index[(h >> 64 - bits) + 1] += len(kept)
    for b in range(2**bits):
        index[b + 1] += index[b]
    return rows, index
