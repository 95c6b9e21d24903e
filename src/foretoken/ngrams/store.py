"""Token statistics that grow: what followed every context of up to eight tokens, counted as the tokens come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foretoken.ngrams import arrays
from foretoken.ngrams.arrays import SEPARATOR, Ints, Trie

DEFAULT_MAX_BYTES = 256 * 2**20
LEAST_ROOM = 64, 256  # for tokens and nodes; some of either is left over wherever a store grows


class TokenStore:
    """Counts of contexts of 1 to 8 tokens and of what followed them, in bounded memory.

    A token costs O(orders) to append and a context O(orders) to look up, however long the text is. Where the store
    would outgrow ``max_bytes`` it forgets the older half of its tokens.

    Args:
        num_tokens: How many tokens to make room for at once.
        max_bytes: The most that the arrays may take, but ``LEAST_BYTES`` at least. While they are moved to others, both
            lie in memory.
    """

    def __init__(self, num_tokens: int = 1024, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.trie = _empty(*LEAST_ROOM)
        self.make_room(num_tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens held, separators with them."""
        return int(self.trie.sizes[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.trie)

    @property
    def is_full(self) -> bool:
        """Whether another token might not fit; so ``kernels.extend`` has it."""
        return (
            int(self.trie.sizes[1]) + 2 * arrays.ORDERS + 2 > self.trie.nodes.size
            or self.num_tokens + 2 > self.trie.tokens.size
        )

    def extend(self, tokens: Sequence[int] | Ints) -> None:
        """Append tokens to the current sequence; numbers below 0 are no tokens and separate sequences."""
        from foretoken.ngrams import kernels

        new = np.array(tokens, np.int32)
        while (done := kernels.extend(self.trie, new)) < new.size:
            new = new[done:]
            self.make_room(new.size)

    def end_sequence(self) -> None:
        """Let the next token begin a sequence of its own, with no context before it."""
        self.extend(np.array([SEPARATOR], np.int32))

    def make_room(self, num_tokens: int) -> None:
        """Grow so that some more tokens fit, all of them if possible, or forget the older half."""
        held, num_nodes = self.num_tokens, int(self.trie.sizes[1])
        room = max(num_tokens, held // 4 + 1)
        while room > held // 8:  # at least a share of what is held, or moving it would take most of the time
            # The text so far says how many nodes a token takes, where it is longer than what may come.
            nodes_per_token = 1.1 * num_nodes / held if room <= held else 2.0
            max_nodes = num_nodes + int(nodes_per_token * room) + LEAST_ROOM[1]
            max_tokens = held + room + LEAST_ROOM[0]
            if _num_bytes(max_tokens, max_nodes) <= self.max_bytes:
                self._grow(max_tokens, max_nodes)
                return
            room //= 2
        self._forget()

    def _grow(self, max_tokens: int, max_nodes: int) -> None:
        from foretoken.ngrams import kernels

        trie, grown = self.trie, _empty(max_tokens, max_nodes)
        for array, bigger in ((trie.tokens, grown.tokens), (trie.nodes, grown.nodes)):
            size = min(array.size, bigger.size)
            bigger[:size] = array[:size]
        grown.sizes[:], grown.active[:] = trie.sizes, trie.active
        kernels.rehash(grown)
        self.trie = grown

    def _forget(self) -> None:
        from foretoken.ngrams import kernels

        newer = self.trie.tokens[self.num_tokens // 2 : self.num_tokens]
        # A part of the text has no node that the whole has not, so the same room is enough.
        trie = _empty(self.trie.tokens.size, self.trie.nodes.size)
        kernels.extend(trie, newer)
        self.trie = trie


def _empty(max_tokens: int, max_nodes: int) -> Trie:
    trie = Trie(
        tokens=np.zeros(max_tokens, np.int32),
        nodes=np.zeros(max_nodes, arrays.NODE),
        table=np.zeros(_table_size(max_nodes), np.int32),
        pairs=np.zeros(_power_of_two(max_tokens), np.int32),
        sizes=np.array([0, 2], np.int64),
        active=np.zeros(arrays.ORDERS + 1, np.int32),
    )
    trie.active[0] = 1
    return trie


def _num_bytes(max_tokens: int, max_nodes: int) -> int:
    """What the arrays of ``_empty`` take."""
    numbers = max_tokens + _table_size(max_nodes) + _power_of_two(max_tokens) + arrays.ORDERS + 1
    return max_nodes * arrays.NODE.itemsize + 4 * numbers + 16


def _table_size(max_nodes: int) -> int:
    return _power_of_two(1.5 * max_nodes)


def _power_of_two(number: float) -> int:
    return 1 << (int(number) - 1).bit_length()


LEAST_BYTES = _num_bytes(*LEAST_ROOM)
