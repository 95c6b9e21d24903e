"""Driven: a language model without weights, for tests, documentation and authors of engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foretoken.core.contracts import Candidates, Need, Scores, Target, Top
from foretoken.core.draft import Draft
from foretoken.core.errors import RequestError
from foretoken.core.noise import gumbel, perturbed
from foretoken.core.sampling import Sampling
from foretoken.engines.base import (
    FOUND,
    NOTHING,
    BatchEncoder,
    Engine,
    Exact,
    Messages,
    Request,
    Tools,
    check_exact,
)
from foretoken.engines.detokenize import BytesDetokenizer
from foretoken.memory.fingerprint import fingerprint

CHARACTERS = [*map(chr, range(32, 127)), "\n"]  # the tokens of the engine

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

    provides: frozenset[Need] = frozenset({"top", "runner_up", "hidden", "logprobs"})
    supports_trees = True
    max_draft_depth: int | None = None

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

    def logits(self, before: int, last: int) -> list[float]:
        """The logits after these two tokens, before any processor."""
        return [2 * gumbel(self.model_seed, before * self.vocab + last, token) for token in range(self.vocab)]

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
        tokens = self.context + self.draft.path(row - 1)
        return tokens, self.target.logits(*[0, *tokens][-2:])

    def _compared(self, row: int) -> list[float]:
        """What the row's choice is the argmax of; the processor is asked once."""
        if row not in self._cache:
            tokens, logits = self._logits(row)
            if self.target.processor:
                logits = self.target.processor(tokens, logits)
            self._cache[row] = perturbed(logits, self.target.temperature, self.target.seed, len(tokens))
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

    def hidden(self, rows: Sequence[int]) -> list[list[int]]:
        return [[0, *self.context, *self.draft.path(row - 1)][-2:] for row in rows]

    def logprobs(self, row: int) -> list[float]:
        return [math.log(prob) for prob in _softmax(self._logits(row)[1])]


class ToyHeads:
    """Heads that know the model of a ``ToyTarget``, and mistake the first tokens of some contexts for each other.

    Args:
        target: Whose model, temperature and seed they know.
        num_heads: How many tokens in a row they guess.
        wrong: In one of so many contexts they are wrong.
    """

    def __init__(self, target: ToyTarget, num_heads: int = 3, wrong: int = 3) -> None:
        self.target, self.num_heads, self.wrong = target, num_heads, wrong
        self._position = 0  # of the guessed tokens
        self._contexts: list[tuple[int, int]] = []  # of the last candidates' rows
        self._candidates = Candidates([], [], [])

    def start(self, state: Sequence[int], token: int, position: int) -> Candidates:
        # The state's own last token came before the pending one; what it knows besides is not needed here.
        return self._guess([(state[-1], token)], position)

    def extend(self, rows: Sequence[int], ranks: Sequence[int]) -> Candidates:
        tokens = self._candidates.tokens
        followed = [(self._contexts[row][1], tokens[row][rank]) for row, rank in zip(rows, ranks, strict=True)]
        return self._guess(followed, self._position + 1)

    def _guess(self, contexts: list[tuple[int, int]], position: int) -> Candidates:
        target, every = self.target, range(self.target.vocab)
        tokens, logprobs, noise = [], [], []
        for before, last in contexts:
            logits = target.logits(before, last)
            if (before + 2 * last) % self.wrong == 0:
                logits[:3] = logits[2::-1]
            probs = _softmax([x / (target.temperature or 1.0) for x in logits])
            tokens.append(sorted(every, key=probs.__getitem__, reverse=True))
            logprobs.append([math.log(probs[token] or 1e-300) for token in tokens[-1]])
            noise.append([gumbel(target.seed, position, x) if target.temperature else 0.0 for x in tokens[-1]])
        self._position, self._contexts, self._candidates = position, contexts, Candidates(tokens, logprobs, noise)
        return self._candidates


def _softmax(logits: Sequence[float]) -> list[float]:
    weights = [math.exp(x - max(logits)) for x in logits]
    return [weight / sum(weights) for weight in weights]


class ToyEngine(Engine):
    """A ``ToyTarget`` that reads and writes printable ASCII, a token for each character.

    It honours temperature, seed and processors, which are called as ``ToyTarget`` says.

    Args:
        model_seed: Decides the model.
        max_length: The context's limit, in tokens. If None, there is none.
    """

    name = "toy"
    vocab_size = len(CHARACTERS)
    cost_key = "toy"
    exact = True
    honours = frozenset({"temperature", "seed", "processors"})

    def __init__(self, model_seed: int = 0, max_length: int | None = None) -> None:
        self.model_seed, self.max_length = model_seed, max_length

    @property
    def fingerprint(self) -> str:
        return fingerprint(self)

    def get_vocab(self) -> dict[str, int]:
        """Every token's id."""
        return {character: token for token, character in enumerate(CHARACTERS)}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        vocabulary = self.get_vocab()
        unknown = next((character for character in text if character not in vocabulary), None)
        if unknown is not None:
            raise RequestError(f"The toy model does not know {unknown!r}: use printable ASCII and line breaks.")
        return [vocabulary[character] for character in text]

    def encode_chat(self, messages: Messages, tools: Tools = ()) -> list[int]:
        if tools:
            raise RequestError("The toy model knows no functions: leave out tools.")
        turns = [f"{message.get('role')}: {message.get('content')}\n" for message in messages]
        return self.encode("".join(turns) + "assistant: ")

    def batch_encoder(self) -> BatchEncoder:
        vocabulary = self.get_vocab()
        return lambda texts: [
            [vocabulary[character] for character in text if character in vocabulary] for text in texts
        ]

    def detokenizer(self, prompt: Sequence[int], skip_special_tokens: bool = True) -> BytesDetokenizer:
        return BytesDetokenizer(lambda token: CHARACTERS[token].encode())

    def prepare(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        max_new_tokens: int | None = None,
        own: Mapping[str, Any] = NOTHING,
    ) -> Request:
        request = super().prepare(prompt, sampling, max_new_tokens, own)
        if sampling.processors:
            assert isinstance(request.target, ToyTarget)
            request.target.processor = _in_order(sampling.processors)
        return request

    def heads(self, target: Target) -> ToyHeads:
        """Heads that are often right."""
        assert isinstance(target, ToyTarget)
        return ToyHeads(target)

    def target(self, temperature: float = 0.0, seed: int = 0) -> ToyTarget:
        return ToyTarget(self.vocab_size, temperature, seed, self.model_seed, max_length=self.max_length)


def load(
    name: str, dtype: str, device: str | None, trust_remote_code: bool, speculator: Any, exact: Exact = "auto"
) -> Engine:
    """The toy engine, which runs nowhere else and in no other numbers, and is exact in any case.

    Raises:
        ForetokenError: If a dtype, a device or a speculator is named, or ``exact`` is no such setting.
    """
    check_exact(exact)
    if speculator != FOUND:
        raise RequestError("The toy model has heads of its own: leave out the speculator.")
    if dtype != "auto" or device is not None:
        raise RequestError("The toy model has no dtype and no device: leave them out.")
    return ToyEngine()


def _in_order(processors: Sequence[Processor]) -> Processor:
    """All processors as one."""

    def process(tokens: Sequence[int], logits: list[float]) -> list[float]:
        for processor in processors:
            logits = processor(tokens, logits)
        return logits

    return process
