"""Calibration: whether guesses that a drafter gives 70 % are right 70 % of the time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from foretoken.core.contracts import Step

BINS = 15  # of equal width, as Guo et al. 2017 (arXiv 1706.04599)


@dataclass
class Reliability:
    """Counts by the probability that a node was given, over nodes whose parent was accepted.

    Only those were put to the test: ``Draft.probs`` says how likely a node is given that its parent is right.

    Attributes:
        nodes: How many nodes fell into each bin.
        chances: The sum of their probabilities.
        right: How many of them were the target's token.

    >>> reliability = Reliability()
    >>> reliability.count(0.95, right=True), reliability.count(0.85, right=False)
    (None, None)
    >>> round(reliability.error, 2)  # half of each bin's distance: (0.05 + 0.85) / 2
    0.45
    """

    nodes: list[int] = field(default_factory=lambda: [0] * BINS)
    chances: list[float] = field(default_factory=lambda: [0.0] * BINS)
    right: list[int] = field(default_factory=lambda: [0] * BINS)

    def add(self, step: Step) -> None:
        """Count the guesses of a step's draft."""
        draft = step.draft
        after = dict(zip((-1, *step.path), step.tokens, strict=True))  # accepted nodes
        for node, parent in enumerate(draft.parents[: draft.num_guesses]):
            if parent in after:
                self.count(draft.probs[node], draft.tokens[node] == after[parent])

    def count(self, prob: float, right: bool) -> None:
        """Count one node."""
        i = min(max(int(prob * BINS), 0), BINS - 1)
        self.nodes[i] += 1
        self.chances[i] += prob
        self.right[i] += right

    @classmethod
    def total(cls, parts: Iterable[Reliability]) -> Reliability:
        """The counts of all parts together."""
        whole = cls()
        for part in parts:
            for i in range(BINS):
                whole.nodes[i] += part.nodes[i]
                whole.chances[i] += part.chances[i]
                whole.right[i] += part.right[i]
        return whole

    @property
    def error(self) -> float:
        """The expected calibration error: the bins' distances from the diagonal, weighted by their nodes."""
        gaps = (abs(right - chance) for right, chance in zip(self.right, self.chances, strict=True))
        return sum(gaps) / (sum(self.nodes) or 1)

    def as_dict(self) -> dict[str, Any]:
        """Nodes, error and the bins that are not empty, for JSON."""
        bins = [
            {
                "from": i / BINS,
                "to": (i + 1) / BINS,
                "nodes": nodes,
                "mean_prob": self.chances[i] / nodes,
                "right": self.right[i] / nodes,
            }
            for i, nodes in enumerate(self.nodes)
            if nodes
        ]
        return {"nodes": sum(self.nodes), "ece": self.error, "bins": bins}
