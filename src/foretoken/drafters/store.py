"""Token statistics that grow: what followed every context of up to eight tokens, counted as the tokens come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foretoken.drafters import kernels
from foretoken.drafters.kernels import SEPARATOR, Ints, Trie

DEFAULT_MAX_BYTES = 256 * 2**20


class TokenStore:
    """Counts of contexts of 1 to 8 tokens and of what followed them, in bounded memory.

    A token costs O(orders) to append and a context O(orders) to look up, however long the text is. Where the store
    would outgrow ``max_bytes`` it forgets the older half of its tokens.

    Args:
        num_tokens: How many tokens to make room for at once.
        max_bytes: The most that the arrays may take.
    """

    def __init__(self, num_tokens: int = 1024, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.trie = _empty(num_tokens + 64, 2 * num_tokens + 256)

    @property
    def num_tokens(self) -> int:
        """Tokens held, separators with them."""
        return int(self.trie.sizes[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.trie)

    def extend(self, tokens: Sequence[int] | Ints) -> None:
        """Append tokens to the current sequence."""
        new = np.asarray(tokens, np.int32)
        while (done := kernels.extend(self.trie, new)) < new.size:
            new = new[done:]
            self.make_room(new.size)

    def end_sequence(self) -> None:
        """Let the next token begin a sequence of its own, with no context before it."""
        self.extend(np.array([SEPARATOR], np.int32))

    def make_room(self, num_tokens: int) -> None:
        """Grow so that more tokens fit, or forget the older half where that would take too much."""
        trie = self.trie
        num_nodes = int(trie.sizes[1])
        # The text so far says how many nodes a token takes; half as many again, since that varies.
        nodes_per_token = max(2.0, num_nodes / max(1, self.num_tokens))
        max_nodes = num_nodes + int(1.1 * nodes_per_token * min(num_tokens, 4096)) + num_nodes // 4 + 256
        max_tokens = max(trie.tokens.size, self.num_tokens + num_tokens + self.num_tokens // 4 + 64)
        grown = _empty(max_tokens, max_nodes)
        if sum(array.nbytes for array in grown) > self.max_bytes and self.num_tokens > 2:
            self._forget()
            return
        grown.tokens[: self.num_tokens] = trie.tokens[: self.num_tokens]
        grown.nodes[:num_nodes] = trie.nodes[:num_nodes]
        grown.sizes[:] = trie.sizes
        grown.active[:] = trie.active
        kernels.rehash(grown)
        self.trie = grown

    def _forget(self) -> None:
        newer = self.trie.tokens[self.num_tokens // 2 : self.num_tokens].copy()
        self.trie = _empty(newer.size + 64, 2 * newer.size + 256)
        self.extend(newer)


def _empty(max_tokens: int, max_nodes: int) -> Trie:
    trie = Trie(
        tokens=np.zeros(max_tokens, np.int32),
        nodes=np.zeros(max_nodes, kernels.NODE),
        table=np.zeros(_power_of_two(1.5 * max_nodes + 16 * kernels.ORDERS), np.int32),
        pairs=np.zeros(_power_of_two(max_tokens), np.int32),
        sizes=np.array([0, 2], np.int64),
        active=np.zeros(kernels.ORDERS + 1, np.int32),
    )
    trie.active[0] = 1
    return trie


def _power_of_two(number: float) -> int:
    return 1 << (int(number) - 1).bit_length()
