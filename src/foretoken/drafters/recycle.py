"""Token recycling: draft the successors that the target's own logits lately ranked highest for each token."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foretoken.core.contracts import Need, Scores, Step
from foretoken.core.draft import Draft
from foretoken.core.numbers import whole
from foretoken.drafters.recipe import Parts, Recipe, option

STEPS = np.array([0.02, 0.06, 0.15, 0.35, 0.6, 0.85, 0.97])  # between which probabilities are taken together
MIDDLES = (0.01, 0.04, 0.1, 0.24, 0.47, 0.72, 0.9, 0.98)
PRIOR = 4.0  # times that a probability counts as having been right as often as it says


class RecycleDrafter:
    """Drafts the tree of the most probable paths through an adjacency table of tokens (Luo et al., arXiv 2408.08696).

    The table keeps, for each token, the ``k`` likeliest successors that the target named the last time it scored a row
    with this token, rejected rows and lookahead rows too. It lives as long as this object, so that the next answer
    begins warm. The paper fills a fixed tree breadth first; here the nodes join in order of the probability of their
    paths, where a successor's own is what the target gave it, corrected by how often such successors were right.

    Args:
        k: Successors kept of each token.
        floor: The least probability of a path that is worth a node.

    Raises:
        ForetokenError: If ``k`` is below 1.
    """

    needs: frozenset[Need] = frozenset({"top"})

    def __init__(self, k: int = 8, floor: float = 0.003) -> None:
        self.k, self.floor = whole("k", k, 1), floor
        self._tokens = np.full((0, k), -1, np.int32)
        self._probs = np.zeros((0, k), np.float32)
        middles = np.tile(MIDDLES, (k, 1))
        self._right, self._seen = PRIOR * middles, np.full((k, len(MIDDLES)), PRIOR)
        self._last = -1  # the last committed token
        self._asked = True  # whether the step's scores are worth their time: not while the budget pauses

    def begin(self, prompt: Sequence[int]) -> None:
        self._last, self._asked = prompt[-1], True

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        self._asked = True
        tokens: list[int] = []
        parents: list[int] = []
        probs: list[float] = []
        waiting: list[tuple[float, int, int, int, float]] = []  # path, order of arrival, token, parent, prob
        last, node, path = context[-1], -1, 1.0
        while len(tokens) < max_tokens:
            for token, prob in self._successors(last):
                if path * prob < self.floor:
                    break
                heapq.heappush(waiting, (-path * prob, len(tokens), token, node, prob))
            if not waiting:
                break
            minus_path, _, last, parent, prob = heapq.heappop(waiting)
            node, path = len(tokens), -minus_path
            tokens.append(last)
            parents.append(parent)
            probs.append(prob)
        return Draft(tuple(tokens), tuple(parents), tuple(probs))

    def observe(self, step: Step) -> None:
        self._learn(step)
        if self._asked:
            assert step.scores is not None, "see needs"
            self._keep([self._last, *step.draft.tokens], step.scores)
        self._last, self._asked = step.tokens[-1], False

    def _keep(self, rows: list[int], scores: Scores) -> None:
        """Keep what the target named after each row of a forward, of whose tokens row 0 is the first."""
        named = scores.top(range(len(rows)), self.k)
        self._make_room(max(rows))
        # The first row last: of several rows with one token, what follows the text itself counts.
        at, width = rows[::-1], len(named.tokens[0])  # fewer than k where the vocabulary is smaller
        self._tokens[at, :width] = named.tokens[::-1]
        self._probs[at, :width] = named.probs[::-1]

    def _successors(self, token: int) -> list[tuple[int, float]]:
        """What was named after a token, and how probable each is, the most probable first."""
        if token >= len(self._tokens):
            return []
        num = int(np.searchsorted(-self._probs[token], 0.0))  # those with a probability above 0
        ranks = range(num)
        steps = np.searchsorted(STEPS, self._probs[token, :num])
        probs = self._right[ranks, steps] / self._seen[ranks, steps]
        total = max(1.0, float(probs.sum()))
        found = zip(self._tokens[token, :num].tolist(), (probs / total).tolist(), strict=True)
        return sorted(found, key=lambda successor: -successor[1])

    def _learn(self, step: Step) -> None:
        """See how often named successors were right."""
        for before, token in zip([self._last, *step.tokens], step.tokens, strict=False):
            if before < len(self._tokens):
                ranks = np.flatnonzero(self._probs[before] > 0)
                steps = np.searchsorted(STEPS, self._probs[before, ranks])
                self._seen[ranks, steps] += 1
                self._right[ranks, steps] += self._tokens[before, ranks] == token

    def _make_room(self, token: int) -> None:
        """Let the table have a row for ``token``."""
        missing = token + 1 - len(self._tokens)
        if missing > 0:
            missing = max(missing, len(self._tokens))
            self._tokens = np.concatenate([self._tokens, np.full((missing, self.k), -1, np.int32)])
            self._probs = np.concatenate([self._probs, np.zeros((missing, self.k), np.float32)])


@dataclass(frozen=True)
class Recycle(Recipe):
    """Token recycling: what the model's own logits named the last time that it read a token.

    Args:
        k: Successors kept of each token.
        floor: The least probability of a path that is worth a node.
    """

    name = "recycle"
    calibrated = True
    needs = frozenset({"top"})
    k: int = option(8, least=1)
    floor: float = option(0.003, least=0.0)

    def make(self, parts: Parts) -> RecycleDrafter:
        self.prepare()
        return RecycleDrafter(self.k, self.floor)
