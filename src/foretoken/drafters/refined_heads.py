"""Refined drafts: a language model weighs again what trained heads say, each branch after its own tokens.

Heads of blockwise decoding and Medusa guess each token without knowing the ones before it, so that what they say of
neighbouring places often does not fit together, and repeats itself. Kim et al. 2024 (arXiv 2404.09221) rescore the
lattice of the heads' best tokens, depth by k, with an n-gram model, and verify its best paths; or each head's guess by
a small neural model. Here the n-gram core is the one, and a rescorer trained beside the heads is the other. Its chances
join those of the heads log-linearly, within the candidates of each head, and any shape of tree can be drafted from the
outcome: a chain or the best paths, as in the paper, or best first under a budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretoken.core.contracts import Candidates, Heads, Rescorer, Step
from foretoken.core.errors import RequestError
from foretoken.drafters.head_trees import Floats, Shape
from foretoken.drafters.heads import HeadsDrafter, Speculator
from foretoken.drafters.ngram import Ngram, NgramMixer, compile_chances
from foretoken.drafters.recipe import Parts, option
from foretoken.ngrams.shared import SharedNgrams

WEIGHT = 0.5
LEAST = 1e-9  # chance of a token
NGRAMS, NETWORK = "ngrams", "network"  # what may rescore


def rescored(logprobs: Floats, chances: Floats, weight: float) -> Floats:
    """What heads and a language model say together of the candidates, log-linearly: [rows, k].

    The language model leaves what it knows nothing of to the heads: such a token has its part, by the heads, of what is
    left. So where no context is known the heads' chances stay. The candidates of a row keep their sum.

    Args:
        logprobs: [rows, k], log-probabilities by the heads.
        chances: [rows, k + 1], as ``Rescorer.chances`` gives them.
        weight: Of the language model, from 0 to 1; the heads have the rest.

    >>> rescored(np.log([[0.6, 0.2]]), np.array([[0.0, 0.8, 0.2]]), 0.5).round(2).tolist()
    [[-1.15, -0.73]]
    """
    probs = np.exp(logprobs)
    logs = (1 - weight) * logprobs + weight * np.log(np.maximum(chances[:, :-1] + chances[:, -1:] * probs, LEAST))
    together: Floats = logs + np.log(probs.sum(1, keepdims=True) / np.exp(logs).sum(1, keepdims=True))
    return together


class RefinedHeads:
    """Heads whose candidates are rescored by a language model. Implements ``core.contracts.Heads``.

    Args:
        heads: The heads.
        rescorer: The language model, which has seen all committed tokens.
        weight: As ``rescored`` has it.
    """

    def __init__(self, heads: Heads, rescorer: Rescorer, weight: float = WEIGHT) -> None:
        self.num_heads = heads.num_heads
        self._heads, self._rescorer, self._weight = heads, rescorer, weight
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
        chances = self._rescorer.chances(self._paths, tokens.astype(np.int32))
        together = rescored(logprobs, chances.astype(np.float64), self._weight)
        self._order = np.argsort(-together, axis=1, kind="stable")
        self._tokens = _by(self._order, tokens)
        return Candidates(self._tokens, _by(self._order, together), _by(self._order, np.asarray(said.noise)))


def _by(order: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """The values of each row in its order."""
    return np.take_along_axis(values, order, 1)


class RefinedDrafter(HeadsDrafter):
    """Drafts a tree of what trained heads and a language model say together.

    Args:
        heads: The heads.
        rescorer: The language model: the n-gram core, or what was trained beside the heads.
        weight: As ``rescored`` has it.
        shape: As ``HeadsDrafter``.
        noise: As ``HeadsDrafter``.
        by_clock: As ``HeadsDrafter``.
    """

    def __init__(
        self,
        heads: Heads,
        rescorer: Rescorer,
        weight: float = WEIGHT,
        shape: Shape | None = None,
        noise: bool = True,
        *,
        by_clock: bool = False,
    ) -> None:
        super().__init__(RefinedHeads(heads, rescorer, weight), shape, noise, by_clock=by_clock)
        self.rescorer = rescorer

    @property
    def memory(self) -> SharedNgrams | None:
        """What the n-gram core shares with other sequences. None of another language model."""
        return self.rescorer.memory if isinstance(self.rescorer, NgramMixer) else None

    def begin(self, prompt: Sequence[int]) -> None:
        self.rescorer.begin(prompt)
        super().begin(prompt)

    def observe(self, step: Step) -> None:
        self.rescorer.observe(step)
        super().observe(step)


@dataclass(frozen=True)
class RefinedSpeculator(Speculator):
    """The drafter "speculator", its guesses rescored by a language model so that they fit together.

    Args:
        tree: As ``Speculator`` has it.
        leaves: As ``Speculator`` has it.
        width: As ``Speculator`` has it.
        noise: As ``Speculator`` has it.
        floor: As ``Speculator`` has it.
        weight: How much the language model says, from 0 to 1.
        by: "ngrams" for the n-gram core, which knows the text; "network" for the rescorer in the folder of the heads.
    """

    name = "refined-speculator"
    remembers = True
    weight: float = option(WEIGHT, least=0.0)
    by: str = NGRAMS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight > 1:
            raise RequestError(f"weight is {self.weight}: give a number from 0 to 1.")
        if self.by not in (NGRAMS, NETWORK):
            raise RequestError(f"by is {self.by!r}: choose {NGRAMS} or {NETWORK}.")

    def check(self, parts: Parts) -> None:
        super().check(parts)
        if self.by == NETWORK and parts.rescorer is None:
            raise RequestError(
                "The drafter 'refined-speculator' needs a rescorer beside the heads, and there is none: train one with "
                '"foretoken train rescorer" into the folder "rescorer" within theirs, or leave out by=network.'
            )

    def prepare(self) -> None:
        super().prepare()
        if self.by == NGRAMS:
            compile_chances()

    def make(self, parts: Parts) -> RefinedDrafter:
        self.check(parts)
        self.prepare()
        assert parts.heads is not None, "it was checked"
        rescorer = Ngram().mixer(parts) if self.by == NGRAMS or parts.rescorer is None else parts.rescorer()
        heads, shape = parts.heads(), self._shape(parts)
        return RefinedDrafter(heads, rescorer, self.weight, shape, self.noise, by_clock=self._by_clock)
