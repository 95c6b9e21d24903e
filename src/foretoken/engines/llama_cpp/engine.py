"""GGUF files as an engine: ``foretoken.load("model.gguf")``."""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from foretoken.core.decode import check_request
from foretoken.core.draft import Draft
from foretoken.core.errors import ModelError, RequestError
from foretoken.core.sampling import Sampling
from foretoken.engines.base import DEFAULT_NEW_TOKENS, FOUND, NOTHING, Engine, Exact, Request, check_exact
from foretoken.engines.fewest_threads import SAID_BY, fewest
from foretoken.engines.llama_cpp.choice import Choice
from foretoken.engines.llama_cpp.context import Contexts, ContextSettings
from foretoken.engines.llama_cpp.exact import self_test
from foretoken.engines.llama_cpp.library import GGUFModel
from foretoken.engines.llama_cpp.target import LlamaCppTarget
from foretoken.engines.llama_cpp.tokens import LlamaCppTokens
from foretoken.memory.self_tests import SelfTest, self_test_of

ROWS = 4  # of a forward that is measured to choose threads: what a short draft has
MAX_CONTEXT = 8192  # tokens, unless the caller asks for another number: a cache for all that a model takes may be huge


class LlamaCppEngine(LlamaCppTokens, Engine):
    """A GGUF file in llama.cpp.

    Args:
        path: The file; of a model in several files, the first.
        context: The most tokens of prompt and answer together. If None, what the model was trained for, 8,192 at most.
        threads: That a forward is computed with. If None, as many as this process may run on.
        gpu_layers: How many layers go to the GPU; -1 for all.
        cache_type: GGML's number of the type of the cache, such as 8 for Q8_0. If None, float16.
        exact: Whether drafted logits must be plain decoding's in every bit; see ``foretoken.load``.

    Raises:
        ForetokenError: If the file cannot be loaded, there is no memory for a context, or it cannot be exact where that
            was asked for.
    """

    name = "llama.cpp"
    honours = frozenset(field.name for field in fields(Sampling))

    def __init__(
        self,
        path: str | os.PathLike[str],
        context: int | None = None,
        threads: int | None = None,
        gpu_layers: int = 0,
        cache_type: int | None = None,
        exact: Exact = "auto",
    ) -> None:
        self.model = GGUFModel(Path(path), gpu_layers)
        LlamaCppTokens.__init__(self, self.model)
        length = min(self.model.context_length, MAX_CONTEXT) if context is None else context
        if length < 2:
            raise RequestError(f"context is {length}: ask for at least 2 tokens.")
        self.max_length = length
        settings = ContextSettings(length, threads or len(os.sched_getaffinity(0)), cache_type, gpu_layers)
        self._contexts = Contexts(self.model, settings)
        self._asked = check_exact(exact)
        LlamaCppTarget(self._contexts)  # refuses what there is no memory for, before any prompt
        self._check_exact()

    def _check_exact(self) -> None:
        if self._asked is True and not self.self_test.passed:
            raise ModelError(
                f"exact=True cannot be kept with {self.model.description}: the bits of its rows depend on how many "
                "rows there are, however many were tried. Leave exact out."
            )

    def with_exact(self, exact: Exact) -> LlamaCppEngine:
        other = copy.copy(self)
        other._asked = check_exact(exact)
        other._check_exact()
        return other

    @property
    def cost_key(self) -> str:
        """The model's architecture, size and type, its context, and the library's version."""
        import llama_cpp

        how = f"{self._contexts.settings} llama-cpp-python={llama_cpp.__version__}"
        return f"llama.cpp {self.model.description} {how}"

    @property
    def exact(self) -> bool:
        if self._asked is False:
            return False
        return self._asked is True or self.self_test.is_cheap

    @property
    def self_test(self) -> SelfTest:
        """Whether plain steps of some number of rows have the bits of drafts, and what they cost."""
        return self_test_of(self.cost_key, lambda: self_test(self._contexts, self.vocab_size))

    @property
    def _least_rows(self) -> int:
        """How many rows a forward has at least."""
        return self.self_test.widths[0] if self.exact else 1

    def settle_threads(self) -> None:
        many = self._contexts.settings.threads
        if many == 1 or self._contexts.settings.gpu_layers or any(os.environ.get(name) for name in SAID_BY):
            return
        both = {threads: self._contexts.with_threads(threads) for threads in (1, many)}
        targets = {threads: LlamaCppTarget(contexts) for threads, contexts in both.items()}

        def seconds(threads: int) -> float:
            target = targets[threads]
            target.prefill([0])
            started = time.perf_counter()
            target.score(0, Draft.chain([0] * (ROWS - 1)))
            return time.perf_counter() - started

        self._contexts = both[fewest(many, seconds)]

    def target(self, temperature: float = 0.0, seed: int = 0) -> LlamaCppTarget:
        choice = Choice(Sampling(temperature=temperature, seed=seed))
        return LlamaCppTarget(self._contexts, choice, self._least_rows)

    def prepare(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        max_new_tokens: int | None = None,
        own: Mapping[str, Any] = NOTHING,
    ) -> Request:
        new_tokens = max_new_tokens or DEFAULT_NEW_TOKENS
        check_request(len(prompt), new_tokens, self.max_length)
        if sampling.samples and sampling.seed is None:
            sampling = replace(sampling, seed=random.getrandbits(63))
        target = LlamaCppTarget(self._contexts, Choice(sampling, len(prompt)), self._least_rows)
        return Request(target, list(prompt), new_tokens, self.end_tokens)


def load(
    name: str,
    dtype: str,
    device: str | None,
    trust_remote_code: bool,
    speculator: str | os.PathLike[str] | None,
    exact: Exact = "auto",
) -> Engine:
    """The engine of a GGUF file; see ``foretoken.load``.

    Raises:
        ForetokenError: If it cannot be loaded, or something is asked for that a file decides or has not.
    """
    if dtype != "auto":
        raise RequestError(f"A GGUF file has its types in it: leave out dtype {dtype!r}.")
    if speculator not in (FOUND, None, "none"):
        raise RequestError(
            "Trained heads need a model's states, which llama.cpp does not show: leave out the speculator."
        )
    return LlamaCppEngine(name, gpu_layers=0 if device in (None, "cpu") else -1, exact=exact)
