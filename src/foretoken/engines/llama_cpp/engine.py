"""GGUF files as an engine: ``foretoken.load("model.gguf")``."""

from __future__ import annotations

import copy
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from foretoken.core.contracts import Heads, Target
from foretoken.core.decode import check_request
from foretoken.core.draft import Draft
from foretoken.core.errors import ModelError, RequestError
from foretoken.core.lazy import lazy
from foretoken.core.sampling import Sampling
from foretoken.engines.base import DEFAULT_NEW_TOKENS, FOUND, NOTHING, Engine, Exact, Request, check_exact
from foretoken.engines.fewest_threads import SAID_BY, fewest
from foretoken.engines.llama_cpp.choice import Choice, compile_choice
from foretoken.engines.llama_cpp.context import FLOATS, Contexts, ContextSettings
from foretoken.engines.llama_cpp.exact import self_test
from foretoken.engines.llama_cpp.library import GGUFModel, llama_cpp_version
from foretoken.engines.llama_cpp.target import EVERY_WIDTH, LlamaCppTarget
from foretoken.engines.llama_cpp.tokens import LlamaCppTokens
from foretoken.memory.self_tests import CHEAP, SelfTest, self_test_of

ROWS = 4  # of a forward that is measured to choose threads: what a short draft has
MAX_CONTEXT = 8192  # tokens, unless the caller asks for another number: a cache for all that a model takes may be huge
TEST_CONTEXT = 320  # tokens of a context that the self-test runs in


@dataclass(frozen=True)
class Way:
    """How a model's forwards are computed.

    Args:
        contexts: Where.
        widths: The numbers of rows that forwards are filled up to.
        exact: Whether drafted logits have the bits of plain decoding.
        found: By the self-test.
    """

    contexts: Contexts
    widths: Sequence[int]
    exact: bool
    found: SelfTest

    @property
    def trees(self) -> bool:
        """Whether drafts may have branches."""
        return not self.exact or self.contexts.settings.flash

    def target(self, choice: Choice) -> LlamaCppTarget:
        """A target that computes so."""
        return LlamaCppTarget(self.contexts, choice, self.widths, self.trees)


class LlamaCppEngine(LlamaCppTokens, Engine):
    """A GGUF file in llama.cpp.

    Args:
        path: The file; of a model in several files, the first.
        context: The most tokens of prompt and answer together. If None, what the model was trained for, 8,192 at most.
        threads: That a forward is computed with. If None, as many as this process may run on.
        gpu_layers: How many layers go to the GPU; -1 for all.
        cache_type: GGML's number of the type of the cache, such as 8 for Q8_0. If None, float16.
        flash: Whether attention is llama.cpp's flash attention. If None, whichever the self-test finds quicker.
        exact: Whether drafted logits must be plain decoding's in every bit; see ``foretoken.load``.
        speculator: The folder of heads that were trained on the model's states. If None, there are none.

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
        flash: bool | None = None,
        exact: Exact = "auto",
        speculator: str | os.PathLike[str] | None = None,
    ) -> None:
        self._speculator = None if speculator is None else Path(speculator).expanduser()
        if self._speculator is not None and not self._speculator.is_dir():
            raise ModelError(
                f"There is no speculator folder {str(speculator)!r}: give a folder of trained heads, or none."
            )
        self.model = GGUFModel(Path(path), gpu_layers)
        LlamaCppTokens.__init__(self, self.model)
        length = min(self.model.context_length, MAX_CONTEXT) if context is None else context
        if length < 2:
            raise RequestError(f"context is {length}: ask for at least 2 tokens.")
        self.max_length = length
        settings = ContextSettings(length, threads or len(os.sched_getaffinity(0)), cache_type, gpu_layers)
        self._contexts = Contexts(self.model, settings)
        compile_choice()
        self._asked, self._flash = check_exact(exact), flash
        if flash is False and cache_type not in FLOATS:
            raise RequestError("A quantized cache needs flash attention: leave flash out.")
        LlamaCppTarget(self._way.contexts)  # refuses what there is no memory for, before any prompt
        self._check_exact()

    def _check_exact(self) -> None:
        if self._asked is True and not self.exact:
            raise ModelError(
                f"exact=True cannot be kept with {self.model.description}: the bits of its rows depend on how many "
                "rows there are, however many were tried. Leave exact out."
            )

    def with_exact(self, exact: Exact) -> LlamaCppEngine:
        other = copy.copy(self)
        other._asked = check_exact(exact)
        vars(other).pop("_way", None)
        other._check_exact()
        return other

    @property
    def threads(self) -> int:
        """That a forward is computed with."""
        return self._contexts.settings.threads

    @property
    def dtype(self) -> str:
        """The type of most weights, such as "Q8_0"."""
        return str(self.model.weights)

    @property
    def cost_key(self) -> str:
        """The model's architecture, size and type, its context, and the library's version."""
        return self._key(self._way.contexts.settings, f"widths={self._way.widths}")

    def _key(self, settings: ContextSettings, how: str) -> str:
        return f"llama.cpp {self.model.description} {settings} {how} llama-cpp-python={llama_cpp_version()}"

    @property
    def exact(self) -> bool:
        return self._way.exact

    @property
    def self_test(self) -> SelfTest:
        """What forwards must be filled up to for drafts to have the bits of plain steps, and what that costs."""
        return self._way.found

    @lazy
    def _way(self) -> Way:
        """How forwards are computed: with either attention, filled up or not, whichever takes the least time.

        Exactness may take somewhat more time, or any if it is insisted on.
        """
        settings = self._contexts.settings
        # Values of a quantized cache can only be read by flash attention.
        both = [True] if settings.cache_type not in FLOATS else [False, True]
        kinds = both if self._flash is None else [self._flash]
        tried = [(self._contexts.but(flash=flash), self._tested(flash)) for flash in kinds]
        quickest, alone = min(tried, key=lambda one: one[1].seconds / (1 + one[1].cost))
        least = alone.seconds / (1 + alone.cost)
        passed = [(contexts, found) for contexts, found in tried if found.passed]
        if passed and self._asked is not False:
            contexts, found = min(passed, key=lambda one: one[1].seconds)
            found = replace(found, cost=found.seconds / least - 1)
            if self._asked is True or found.is_cheap:
                return Way(contexts, found.widths, True, found)
        else:
            found = alone
        return Way(quickest, EVERY_WIDTH, False, found)

    def _tested(self, flash: bool) -> SelfTest:
        """What the self-test finds with one of the kinds of attention."""
        most_cost = math.inf if self._asked is True else CHEAP
        settings = replace(self._contexts.settings, flash=flash)
        short = self._contexts.but(flash=flash, length=min(settings.length, TEST_CONTEXT))
        return self_test_of(
            self._key(settings, f"cost<={most_cost}"), lambda: self_test(short, self.vocab_size, most_cost)
        )

    @property
    def heads(self) -> Callable[[Target], Heads] | None:
        """Gives the trained heads, set to the choice of a target. None if there are none."""
        folder = self._speculator
        if folder is None:
            return None
        from foretoken.engines.llama_cpp.heads import trained_heads

        def heads(target: Target) -> Heads:
            assert isinstance(target, LlamaCppTarget)
            return trained_heads(folder, self.model.width, self.vocab_size, target.choice)

        return heads

    def settle_threads(self) -> None:
        many = self._contexts.settings.threads
        if many == 1 or self._contexts.settings.gpu_layers or any(os.environ.get(name) for name in SAID_BY):
            return
        both = {threads: self._contexts.but(threads=threads) for threads in (1, many)}
        targets = {threads: LlamaCppTarget(contexts) for threads, contexts in both.items()}

        def seconds(threads: int) -> float:
            target = targets[threads]
            target.prefill([0])
            started = time.perf_counter()
            target.score(0, Draft.chain([0] * (ROWS - 1)))
            return time.perf_counter() - started

        self._contexts = both[fewest(many, seconds)]
        self.__dict__.pop("_way", None)  # it was found with other threads

    def target(self, temperature: float = 0.0, seed: int = 0) -> LlamaCppTarget:
        choice = Choice(Sampling(temperature=temperature, seed=seed))
        return self._way.target(choice)

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
        target = self._way.target(Choice(sampling, len(prompt)))
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
    heads = None if speculator in (FOUND, None, "none") else speculator
    return LlamaCppEngine(name, gpu_layers=0 if device in (None, "cpu") else -1, exact=exact, speculator=heads)
