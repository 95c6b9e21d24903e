"""Stand-ins: vLLM's batch, a matrix of token ids whose rows move, and what chooses by the clock in a drafter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

MAX_LENGTH = 600


class Rows:
    """Requests in rows. A row that is free takes the last one, as vLLM condenses its batch."""

    def __init__(self, max_rows: int = 8) -> None:
        self.texts = np.full((max_rows, MAX_LENGTH), 7, np.int32)  # what stood there before is of no meaning
        self.lengths = np.zeros(max_rows, np.int32)
        self.names: list[str] = []

    def add(self, name: str, text: Sequence[int]) -> None:
        row = len(self.names)
        self.texts[row, : len(text)], self.lengths[row] = text, len(text)
        self.names.append(name)

    def remove(self, name: str) -> list[int]:
        """Returns its text, for one that is preempted and comes back."""
        row, last = self.names.index(name), len(self.names) - 1
        text = self.texts[row, : self.lengths[row]].tolist()
        self.texts[row], self.lengths[row], self.names[row] = self.texts[last], self.lengths[last], self.names[last]
        self.names.pop()
        return text

    def swap(self, a: int, b: int) -> None:
        for array in (self.texts, self.lengths):
            array[[a, b]] = array[[b, a]]
        self.names[a], self.names[b] = self.names[b], self.names[a]

    def commit(self, new: Mapping[str, Sequence[int]]) -> list[list[int]]:
        """What vLLM hands to a drafter after a step: the new tokens of each row, none for those not named."""
        sampled = [list(new.get(name, [])) for name in self.names]
        for row, tokens in enumerate(sampled):
            length = int(self.lengths[row])
            self.texts[row, length : length + len(tokens)] = tokens
            self.lengths[row] += len(tokens)
        return sampled


def config(max_draft: object = 4, max_length: int = MAX_LENGTH, max_requests: int = 8) -> SimpleNamespace:
    """The parts of a VllmConfig that concern drafting."""
    model = SimpleNamespace(max_model_len=max_length)
    return SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=max_draft),
        model_config=model,
        scheduler_config=SimpleNamespace(max_num_seqs=max_requests),
    )


class DraftsAll:
    """In the place of the budget, which goes by the clock: all is drafted that is known, and what came of it counted.

    Args:
        least: The path probability that a token must exceed.
    """

    def __init__(self, least: float = 0.0) -> None:
        self._least = least
        self.told: list[tuple[int, int, int]] = []  # requests, drafted and kept tokens of each step

    @property
    def num_drafted(self) -> int:
        return sum(drafted for _, drafted, _ in self.told)

    @property
    def num_kept(self) -> int:
        return sum(kept for _, _, kept in self.told)

    def allows(self, num_requests: int) -> bool:
        return True

    def rest(self, num_requests: int, is_asked: bool) -> int:
        return 0

    def floor(self, num_requests: int, num_drafted: int) -> float:
        return 0.0

    def choose(self, paths: Any, num_requests: int) -> Any:
        return np.count_nonzero(paths > self._least, axis=1).astype(np.int32)

    def observe(self, num_requests: int, num_drafted: int, seconds: float, promised: float, num_kept: int) -> None:
        assert 0 <= promised <= num_drafted
        self.told.append((num_requests, num_drafted, num_kept))


class AsksHeads:
    """In the place of what chooses by the clock whether heads are asked."""

    def __init__(self) -> None:
        self.asks = True
        self.added: list[tuple[bool, int]] = []

    def choose(self) -> bool:
        return self.asks

    def add(self, asked: bool, tokens: int, seconds: float) -> None:
        self.added.append((asked, tokens))
