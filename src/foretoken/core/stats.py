"""DecodeStats: what a decode cost and what drafting gained, in one definition."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from foretoken.core.contracts import Step


@dataclass
class DecodeStats:
    """Counts and times of one decode.

    Attributes:
        tokens: Tokens of the answer.
        steps: Forwards of the target after the prefill, whose scores give the first token.
        drafted: Guesses that the target checked.
        accepted: Guesses that became tokens of the answer.
        accepted_per_position: In how many steps the first guess of the path was accepted, the second one, and so on.
        draft_seconds: Time of the drafter in these steps; what it reads of the prompt belongs to the prefill.
        prefill_seconds: Wall time until the first token.
        seconds: Wall time in all.
    """

    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_per_position: list[int] = field(default_factory=list)
    draft_seconds: float = 0.0
    prefill_seconds: float = 0.0
    seconds: float = 0.0
    _started: float = field(default_factory=time.perf_counter, repr=False)

    @classmethod
    def of(cls, steps: Iterable[Step]) -> DecodeStats:
        """What a whole decode cost, run to its end here."""
        stats = cls()
        for step in steps:
            stats.add(step)
        return stats

    @classmethod
    def total(cls, parts: Iterable[DecodeStats]) -> DecodeStats:
        """The counts and times of several decodes together."""
        whole = cls()
        for part in parts:
            whole.tokens += part.tokens
            whole.steps += part.steps
            whole.drafted += part.drafted
            whole.accepted += part.accepted
            whole.draft_seconds += part.draft_seconds
            whole.prefill_seconds += part.prefill_seconds
            whole.seconds += part.seconds
            whole._count_positions(part.accepted_per_position)
        return whole

    def add(self, step: Step) -> None:
        """Count a step; the first is the prefill's."""
        self.seconds = time.perf_counter() - self._started
        if self.tokens == 0:
            self.prefill_seconds = self.seconds
        else:
            self.steps += 1
            self.draft_seconds += step.draft_seconds
        self.tokens += len(step.tokens)
        self.drafted += step.draft.num_guesses
        self.accepted += step.num_accepted
        self._count_positions([1] * step.num_accepted)

    def _count_positions(self, accepted: Sequence[int]) -> None:
        self.accepted_per_position += [0] * (len(accepted) - len(self.accepted_per_position))
        for position, times in enumerate(accepted):
            self.accepted_per_position[position] += times

    @property
    def acceptance_length(self) -> float:
        """Tokens per step, the target's own with them: 1 + accepted / steps, as vLLM and Spec-Bench count."""
        return 1 + self.accepted / self.steps if self.steps else 1.0

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that were accepted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The counts, times and both ratios, for JSON."""
        counts = {name: value for name, value in asdict(self).items() if not name.startswith("_")}
        return counts | {"acceptance_length": self.acceptance_length, "acceptance_rate": self.acceptance_rate}
