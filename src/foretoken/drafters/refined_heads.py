"""Refined drafts: an n-gram core weighs again what trained heads say, each branch after its own tokens.

Heads of blockwise decoding and Medusa guess each token without knowing the ones before it, so that what they say of
neighbouring places often does not fit together, and repeats itself. Kim et al. 2024 (arXiv 2404.09221) rescore the
lattice of the heads' best tokens, depth by k, with an n-gram model, and verify its best paths. Here the n-gram core is
that model. Its chances join those of the heads log-linearly, within the candidates of each head, and any shape of tree
can be drafted from the outcome: the best paths, as in the paper, or best first under a budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretoken.core.contracts import Candidates, Heads, Step
from foretoken.core.errors import RequestError
from foretoken.drafters.head_trees import Floats, Shape
from foretoken.drafters.heads import HeadsDrafter, Speculator
from foretoken.drafters.ngram import Ngram, NgramMixer, compile_chances
from foretoken.drafters.recipe import Parts, option
from foretoken.ngrams.shared import SharedNgrams

WEIGHT = 0.5
LEAST = 1e-9  # chance of a token


def rescored(logprobs: Floats, chances: Floats, weight: float) -> Floats:
    """What heads and an n-gram model say together of the candidates, log-linearly: [rows, k].

    The n-gram model leaves what it knows nothing of to the heads: a token without a vote has its part, by the heads, of
    what is left. So where no context is known the heads' chances stay. The candidates of a row keep their sum.

    Args:
        logprobs: [rows, k], log-probabilities by the heads.
        chances: [rows, k + 1], by the n-gram model: of each candidate, then of all tokens without a vote.
        weight: Of the n-gram model, from 0 to 1; the heads have the rest.

    >>> rescored(np.log([[0.6, 0.2]]), np.array([[0.0, 0.8, 0.2]]), 0.5).round(2).tolist()
    [[-1.15, -0.73]]
    """
    probs = np.exp(logprobs)
    logs = (1 - weight) * logprobs + weight * np.log(np.maximum(chances[:, :-1] + chances[:, -1:] * probs, LEAST))
    together: Floats = logs + np.log(probs.sum(1, keepdims=True) / np.exp(logs).sum(1, keepdims=True))
    return together


class RefinedHeads:
    """Heads whose candidates are rescored by an n-gram core. Implements ``core.contracts.Heads``.

    Args:
        heads: The heads.
        ngrams: The n-gram core, which has seen all committed tokens.
        weight: As ``rescored`` has it.
    """

    def __init__(self, heads: Heads, ngrams: NgramMixer, weight: float = WEIGHT) -> None:
        self.num_heads = heads.num_heads
        self._heads, self._ngrams, self._weight = heads, ngrams, weight
        self._paths = np.zeros((1, 0), np.int32)  # the guesses before each row
        self._tokens = self._order = np.zeros((1, 0), np.int64)  # the candidates, and their ranks by the heads alone

    def start(self, state: Any, token: int, position: int) -> Candidates:
        self._paths = np.zeros((1, 0), np.int32)
        return self._rescored(self._heads.start(state, token, position))

    def extend(self, rows: Sequence[int], ranks: Sequence[int]) -> Candidates:
        chosen = self._tokens[rows, ranks].astype(np.int32)
        self._paths = np.column_stack([self._paths[rows], chosen])
        return self._rescored(self._heads.extend(rows, self._order[rows, ranks].tolist()))

    def _rescored(self, said: Candidates) -> Candidates:
        tokens, logprobs = np.asarray(said.tokens), np.asarray(said.logprobs, np.float64)
        chances = self._ngrams.chances(self._paths, tokens.astype(np.int32))
        together = rescored(logprobs, chances.astype(np.float64), self._weight)
        self._order = np.argsort(-together, axis=1, kind="stable")
        self._tokens = _by(self._order, tokens)
        return Candidates(self._tokens, _by(self._order, together), _by(self._order, np.asarray(said.noise)))


def _by(order: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """The values of each row in its order."""
    return np.take_along_axis(values, order, 1)


class RefinedDrafter(HeadsDrafter):
    """Drafts a tree of what trained heads and the n-gram core say together.

    Args:
        heads: The heads.
        ngrams: The n-gram core.
        weight: As ``rescored`` has it.
        shape: As ``HeadsDrafter``.
        noise: As ``HeadsDrafter``.
        by_clock: As ``HeadsDrafter``.
    """

    def __init__(
        self,
        heads: Heads,
        ngrams: NgramMixer,
        weight: float = WEIGHT,
        shape: Shape | None = None,
        noise: bool = True,
        *,
        by_clock: bool = False,
    ) -> None:
        super().__init__(RefinedHeads(heads, ngrams, weight), shape, noise, by_clock=by_clock)
        self.ngrams = ngrams

    @property
    def memory(self) -> SharedNgrams:
        """What the n-gram core shares with other sequences."""
        return self.ngrams.memory

    def begin(self, prompt: Sequence[int]) -> None:
        self.ngrams.begin(prompt)
        super().begin(prompt)

    def observe(self, step: Step) -> None:
        self.ngrams.observe(step)
        super().observe(step)


@dataclass(frozen=True)
class RefinedSpeculator(Speculator):
    """The drafter "speculator", its guesses rescored by n-grams so that they fit the text and each other.

    Args:
        tree: As ``Speculator`` has it.
        leaves: As ``Speculator`` has it.
        width: As ``Speculator`` has it.
        noise: As ``Speculator`` has it.
        floor: As ``Speculator`` has it.
        weight: How much the n-grams say, from 0 to 1.
    """

    name = "refined-speculator"
    remembers = True
    weight: float = option(WEIGHT, least=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight > 1:
            raise RequestError(f"weight is {self.weight}: give a number from 0 to 1.")

    def prepare(self) -> None:
        super().prepare()
        compile_chances()

    def make(self, parts: Parts) -> RefinedDrafter:
        self.check(parts)
        self.prepare()
        assert parts.heads is not None, "it was checked"
        heads, ngrams = parts.heads(), Ngram().mixer(parts)
        return RefinedDrafter(heads, ngrams, self.weight, self._shape(parts), self.noise, by_clock=self._by_clock)
