"""Driven: a deterministic language model in a few lines, for tests and documentation; no weights, no dependencies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from foretoken.core.contracts import Need, Scores, Top
from foretoken.core.draft import Draft
from foretoken.core.noise import gumbel

Processor = Callable[[Sequence[int], list[float]], list[float]]


class ToyTarget:
    """The next token depends on the last two; greedy, or sampled with the noise of (seed, position).

    Args:
        vocab: How many tokens there are.
        temperature: 0 for greedy.
        seed: Decides the choice under sampling.
        model_seed: Decides the model.
        processor: Called with the tokens so far and the logits, returns the logits to choose from.
        max_length: The context's limit, in tokens.
    """

    provides: frozenset[Need] = frozenset({"top", "runner_up"})
    supports_trees = True
    max_draft_depth = None

    def __init__(
        self,
        vocab: int = 5,
        temperature: float = 0.0,
        seed: int = 0,
        model_seed: int = 0,
        processor: Processor | None = None,
        max_length: int | None = None,
    ) -> None:
        self.vocab, self.temperature, self.seed, self.model_seed = vocab, temperature, seed, model_seed
        self.processor, self.max_length = processor, max_length
        self.cache: list[int] = []
        self.draft = Draft()
        self.forwards = 0

    def prefill(self, prompt: Sequence[int]) -> Scores:
        self.cache = []
        return self._forward(prompt, Draft())

    def score(self, last_token: int, draft: Draft) -> Scores:
        return self._forward([last_token], draft)

    def keep(self, path: Sequence[int]) -> None:
        self.cache += [self.draft.tokens[node] for node in path]

    @property
    def num_cached(self) -> int:
        """How many tokens the cache holds."""
        return len(self.cache)

    def rewind(self, num_tokens: int) -> None:
        """Leave only the first ``num_tokens`` tokens in the cache."""
        del self.cache[num_tokens:]
        self.draft = Draft()

    def _forward(self, tokens: Sequence[int], draft: Draft) -> ToyScores:
        self.forwards += 1
        self.cache += tokens
        self.draft = draft
        return ToyScores(self, list(self.cache), draft)


class ToyScores(Scores):
    """Logits of any row, computed when asked."""

    def __init__(self, target: ToyTarget, context: list[int], draft: Draft) -> None:
        self.target, self.context, self.draft = target, context, draft
        self._cache: dict[int, list[float]] = {}

    def _logits(self, row: int) -> tuple[list[int], list[float]]:
        """The tokens up to and with a row, and its logits."""
        target = self.target
        tokens = self.context + self.draft.path(row - 1)
        before, last = [0, *tokens][-2:]
        return tokens, [
            2 * gumbel(target.model_seed, before * target.vocab + last, token) for token in range(target.vocab)
        ]

    def _compared(self, row: int) -> list[float]:
        """What the row's choice is the argmax of; the processor is asked once."""
        if row not in self._cache:
            tokens, logits = self._logits(row)
            if self.target.processor:
                logits = self.target.processor(tokens, logits)
            if self.target.temperature > 0:
                noise = [gumbel(self.target.seed, len(tokens), token) for token in range(len(logits))]
                logits = [x / self.target.temperature + g for x, g in zip(logits, noise, strict=True)]
            self._cache[row] = logits
        return self._cache[row]

    def choose(self, row: int) -> int:
        compared = self._compared(row)
        return max(range(len(compared)), key=compared.__getitem__)

    def runner_up(self, row: int) -> tuple[int, float]:
        best, compared = self.choose(row), self._compared(row)
        others = [token for token in range(len(compared)) if token != best]
        second = max(others, key=compared.__getitem__, default=best)
        return second, compared[best] - compared[second] if others else math.inf

    def top(self, rows: Sequence[int], k: int) -> Top:
        tokens, probs = [], []
        for row in rows:
            every = _softmax(self._logits(row)[1])
            tokens.append(sorted(range(len(every)), key=every.__getitem__, reverse=True)[:k])
            probs.append([every[token] for token in tokens[-1]])
        return Top(tokens, probs)


def _softmax(logits: Sequence[float]) -> list[float]:
    weights = [math.exp(x - max(logits)) for x in logits]
    return [weight / sum(weights) for weight in weights]
