"""The namespaces whose memory the rows of a step share, as a table that the compiled loops read."""

from __future__ import annotations

import numpy as np

from foretoken.memory.namespace import Namespace
from foretoken.ngrams import arrays
from foretoken.ngrams.arrays import Frozen, Trie, Weights
from foretoken.ngrams.shared import SharedNgrams


class Memories:
    """A row for each namespace that some request shares.

    Attributes:
        addresses: int64 [rows, MEMORY_COLUMNS], of earlier answers' statistics and of the mixer's weights.
    """

    def __init__(self) -> None:
        self.addresses = np.zeros((1, arrays.MEMORY_COLUMNS), np.int64)
        self._namespaces: list[Namespace | None] = [None]
        self._num_slots = [0]
        # The arrays that the addresses are of. Another thread may replace a namespace's arrays while a loop reads them.
        self._held: list[tuple[Trie, Weights] | None] = [None]

    def __len__(self) -> int:
        return sum(num > 0 for num in self._num_slots)

    def take(self, namespace: Namespace) -> int:
        """The row of a namespace, which another slot shares from now on."""
        known = [row for row, other in enumerate(self._namespaces) if other is namespace]
        row = known[0] if known else self._free_row()
        self._namespaces[row] = namespace
        self._num_slots[row] += 1
        return row

    def _free_row(self) -> int:
        if None not in self._namespaces:
            num = len(self._namespaces)
            self.addresses = np.concatenate([self.addresses, np.zeros_like(self.addresses)])
            self._namespaces += [None] * num
            self._num_slots += [0] * num
            self._held += [None] * num
        return self._namespaces.index(None)

    def give_back(self, row: int) -> None:
        """A slot does no longer; a row without any is free."""
        self._num_slots[row] -= 1
        if self._num_slots[row] == 0:
            self._namespaces[row] = self._held[row] = None

    def namespace(self, row: int) -> Namespace:
        """Whose row it is."""
        namespace = self._namespaces[row]
        assert namespace is not None
        return namespace

    def ngrams(self, row: int) -> SharedNgrams:
        """What it has learned."""
        return self.namespace(row).ngrams

    def refresh(self) -> Frozen:
        """Write the addresses of what was replaced; the background corpus, which all namespaces share."""
        frozen = _NOTHING
        for row, namespace in enumerate(self._namespaces):
            if namespace is None:
                continue
            ngrams, held = namespace.ngrams, self._held[row]
            trie, weights = ngrams.answers.trie, ngrams.weights
            if held is None or held[0] is not trie or held[1] is not weights:
                self._held[row] = trie, weights
                self.addresses[row] = arrays.addresses_of(*trie, *weights)
            frozen = ngrams.frozen
        return frozen


_NOTHING = SharedNgrams().frozen
