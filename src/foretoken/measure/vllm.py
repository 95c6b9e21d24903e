"""Engines of vLLM in one process, in turns: what drafting gains where many requests are decoded at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from itertools import cycle, islice
from typing import Any

from foretoken.core.errors import ForetokenError, ModelError, RequestError
from foretoken.measure.prompts import Question

SEED = 0
BATCHED_TOKENS = 2048  # of a step, at most; left to itself vLLM takes fewer where it drafts
PLAIN = "none"


def _ours(most: int) -> dict[str, Any]:
    return {"method": "custom_class", "model": "foretoken.hosts.vllm.Drafter", "num_speculative_tokens": most}


METHODS: dict[str, Callable[[int], dict[str, Any] | None]] = {
    PLAIN: lambda most: None,
    "ngram": lambda most: {
        "method": "ngram",
        "num_speculative_tokens": most,
        "prompt_lookup_max": 5,
        "prompt_lookup_min": 2,
    },
    "suffix": lambda most: {"method": "suffix", "num_speculative_tokens": most},
    "foretoken": _ours,
    "foretoken-heads": _ours,
}
OPTIONS: dict[str, dict[str, Any]] = {  # of our drafter; nothing is shared, for prompts come more than once
    "foretoken": {"namespace": None},
    "foretoken-heads": {"namespace": None, "speculator": "auto"},
}
# What vLLM reads while it is imported. What the caller has set stays.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass
class Load:
    """What one method did under one load.

    Args:
        method: Its name.
        kind: The kind of the prompts.
        concurrency: Requests that were decoded at any time, but for the last ones.
        seconds: Of the engine's steps.
        cpu_seconds: Processor time of the thread that calls the engine; of all that it does if it has no other.
        num_tokens: Of all answers.
        num_turns: Steps, counted for each request that got tokens in one.
        token_seconds: For each request, the seconds from its first token to its last one, by its further tokens.
        texts: The tokens of each answer.
    """

    method: str
    kind: str
    concurrency: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    num_tokens: int = 0
    num_turns: int = 0
    token_seconds: list[float] = field(default_factory=list)
    texts: dict[int, list[int]] = field(default_factory=dict)

    def row(self, plain: Load) -> dict[str, Any]:
        """As a row of a table, beside plain decoding under the same load."""
        times = sorted(self.token_seconds)
        return {
            "kind": self.kind,
            "requests": self.concurrency,
            "method": self.method,
            "speedup": (self.num_tokens / self.seconds) / (plain.num_tokens / plain.seconds),
            "by CPU time": (self.num_tokens / self.cpu_seconds) / (plain.num_tokens / plain.cpu_seconds),
            "tokens per s": self.num_tokens / self.seconds,
            "p50 ms": 1000 * times[len(times) // 2],
            "p99 ms": 1000 * times[len(times) * 99 // 100],
            "tokens per step": self.num_tokens / self.num_turns,
            "other texts": sum(self.texts[i] != text for i, text in plain.texts.items()),
        }

    def as_dict(self) -> dict[str, Any]:
        """The numbers, without the texts."""
        numbers = asdict(self)
        del numbers["texts"], numbers["token_seconds"]
        return numbers


class Served:
    """An engine of vLLM that is stepped by hand, so that several can take turns.

    Args:
        name: Of the method.
        model: The model's folder.
        options: Of vLLM's ``LLM``.
        max_draft: The most drafted tokens of a request and step.
        shares: Whether answers are drafted from earlier ones, where the method can do that.

    Raises:
        ForetokenError: If vLLM has not what the method needs.
    """

    def __init__(self, name: str, model: str, options: Mapping[str, Any], max_draft: int, shares: bool = False) -> None:
        from vllm import LLM

        try:
            self.llm = LLM(
                model,
                speculative_config=METHODS[name](max_draft),
                additional_config={"foretoken": OPTIONS[name]} if name in OPTIONS else {},
                seed=SEED,
                **options,
            )
        except ImportError as error:
            raise ModelError(f"vLLM's method {name!r} needs a package that is not here: {error}") from error
        self.name, self.engine = name, self.llm.llm_engine
        self._number = 0
        self._base: Callable[[], float] = time.perf_counter
        self._spent = 0.0
        self._entered: float | None = None  # when its step began, by that clock
        if name in OPTIONS:
            executor: Any = self.engine.engine_core.engine_core.model_executor
            drafter = executor.driver_worker.worker.model_runner.drafter
            self._base, drafter.clock = drafter.clock, self.clock
            self.states = drafter.states

    def clock(self) -> float:
        """The seconds that this engine has run: between its steps others have their turn."""
        return self._spent + (0.0 if self._entered is None else self._base() - self._entered)

    def _step(self) -> list[Any]:
        self._entered = self._base()
        outputs: list[Any] = self.engine.step()
        self._spent, self._entered = self.clock(), None
        return outputs

    def under(self, load: Load, questions: Sequence[Question], sampling: Any) -> Iterator[None]:
        """Answer questions, so many at a time; comes back after each step of the engine."""
        waiting = list(enumerate(questions))[::-1]
        running: dict[str, Request] = {}
        while waiting or running:
            while waiting and len(running) < load.concurrency:
                number, question = waiting.pop()
                self._number += 1
                running[str(self._number)] = Request(number)
                prompt = {"prompt_token_ids": list(question.prompt)}
                self.engine.add_request(str(self._number), prompt, sampling)
            started, cpu_started = time.perf_counter(), time.thread_time()
            outputs = self._step()
            load.seconds += time.perf_counter() - started
            load.cpu_seconds += time.thread_time() - cpu_started
            for output in outputs:
                request, tokens = running[output.request_id], list(output.outputs[0].token_ids)
                request.take(len(tokens), load)
                if output.finished:
                    load.texts[request.number] = tokens
                    del running[output.request_id]
                    if len(tokens) > 1:
                        load.token_seconds.append((load.seconds - request.first) / (len(tokens) - 1))
            yield


@dataclass
class Request:
    """One that runs.

    Args:
        number: Which question it is.
        num_tokens: What it has said so far.
        first: The load's seconds when its first token came.
    """

    number: int
    num_tokens: int = 0
    first: float = 0.0

    def take(self, num_tokens: int, load: Load) -> None:
        """It has so many tokens now."""
        if num_tokens > self.num_tokens:
            load.num_tokens, load.num_turns = load.num_tokens + num_tokens - self.num_tokens, load.num_turns + 1
            self.first = self.first or load.seconds
            self.num_tokens = num_tokens


def folder_of(model: str) -> str:
    """The folder of the bundled model; of another one the name as it is, which vLLM knows to find."""
    return str(files("foretoken") / "models" / model) if model == "tiny" else model


def prepare(threads: int | None) -> None:
    """Set what vLLM reads as it is imported.

    Args:
        threads: How many threads of a CPU compute. If None, one for each core.
    """
    if threads is not None:
        # Not bound to cores: one that something else keeps busy would slow down all.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["OMP_NUM_THREADS"] = str(threads)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def engines(model: str, methods: Sequence[str], options: Mapping[str, Any], max_draft: int) -> list[Served]:
    """An engine for each method.

    Raises:
        ForetokenError: If vLLM is missing, or has not what a method needs.
    """
    try:
        import vllm  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModelError(f"This benchmark needs {error.name}: pip install 'foretoken[vllm]'.") from error
    from foretoken.hosts.vllm.plugin import register
    from foretoken.hosts.vllm.rebinding import allow_numba
    from foretoken.hosts.vllm.settings import check_version

    check_version()
    allow_numba()
    register()
    return [Served(name, model, options, max_draft) for name in methods]


def measure(
    served: Sequence[Served], questions: Sequence[Question], concurrency: int, num_requests: int, max_new_tokens: int
) -> list[Load]:
    """The same requests to each engine, closed loop. The engine that has used least time takes the next step.

    So whatever else the machine does disturbs all alike.

    Args:
        served: The engines; the plain one is the first.
        questions: Of one kind. They are asked over and over.
        concurrency: How many requests run at any time.
        num_requests: How many there are in all.
        max_new_tokens: Of each answer, the same number for all.

    Raises:
        ForetokenError: If there are fewer requests than run at a time.
    """
    from vllm import SamplingParams

    if num_requests < concurrency:
        raise RequestError(f"{num_requests} requests cannot keep {concurrency} running: ask for more.")
    sampling = SamplingParams(temperature=0.0, max_tokens=max_new_tokens, ignore_eos=True, detokenize=False)
    asked = list(islice(cycle(questions), num_requests))
    kinds = sorted({question.kind for question in questions})
    loads, turns = [], {}
    for one in served:
        load = Load(one.name, kinds[0] if len(kinds) == 1 else "all", concurrency)
        loads.append(load)
        turns[len(loads) - 1] = one.under(load, asked, sampling)
    while turns:
        index = min(turns, key=lambda index: loads[index].seconds)
        try:
            next(turns[index])
        except StopIteration:
            del turns[index]
    return loads


def check_methods(names: Sequence[str]) -> list[str]:
    """The methods to run, plain decoding first.

    Raises:
        ForetokenError: If one is unknown.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ForetokenError(f"There is no method {unknown[0]!r}: choose of {', '.join(METHODS)}.")
    return [PLAIN, *dict.fromkeys(name for name in names if name != PLAIN)]
