"""The answers to one request, as the scheduler runs them: an item for the checks, then one for each forward."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from typing import Any

from foretoken.api.answer import Stream
from foretoken.api.language_model import LanguageModel, require_memory
from foretoken.api.options import Prompt
from foretoken.core.budget import FixedBudget
from foretoken.core.contracts import FinishReason, Step
from foretoken.core.errors import RequestError
from foretoken.core.stats import DecodeStats
from foretoken.drafters import RECIPES, DraftModel, Recipe, recipe_of
from foretoken.server.schema import Asked, Drafting
from foretoken.server.stops import TextBeforeStop

# What a setting is when it changes nothing, for engines that do not choose by it: clients like to send these.
NEUTRAL = {"top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}


@dataclass(frozen=True, slots=True)
class Finish:
    """How an answer ended.

    Args:
        reason: "stop" or "length".
        num_prompt_tokens: How many tokens its prompt had.
        stats: What it cost. Its seconds go on while others get their forwards.
    """

    reason: FinishReason
    num_prompt_tokens: int
    stats: DecodeStats


@dataclass(frozen=True, slots=True)
class Part:
    """What one step added to an answer.

    Args:
        index: Which answer of the request.
        step: What was committed.
        is_prefill: Whether it is the step of the prompt.
        seconds: What it took.
        text: The text that is settled now, maybe none.
        guessed: The beginning of it that came from accepted guesses.
        finish: How the answer ended. None if it goes on.
    """

    index: int
    step: Step
    is_prefill: bool
    seconds: float
    text: str
    guessed: str
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The request has been read and can be answered."""


def answers(lm: LanguageModel, asked: Asked, owner: str) -> Generator[Ready | Part, None, Part | None]:
    """Answer every prompt of a request ``n`` times, one answer after the other. The last part is returned.

    Args:
        lm: The model.
        asked: The request.
        owner: Whose namespaces are drafted from.

    Raises:
        ForetokenError: With the first item, if the request cannot be honoured.
    """
    options = options_of(lm, asked, owner)
    sampling = sampling_of(lm, asked)
    prompts, num = asked.prompts, asked.n or 1

    def begin(prompt: Prompt, choice: int) -> Stream:
        seed = None if asked.seed is None else asked.seed + choice
        return lm.stream(prompt, seed=seed, **sampling, **options)

    first = begin(prompts[0], 0)
    for prompt in prompts[1:]:  # so that a bad one is found before the first is answered
        lm.prepare(prompt, **sampling)
    yield Ready()
    last: Part | None = None
    for index, (prompt, choice) in enumerate(product(prompts, range(num))):
        if last is not None:
            yield last
        last = yield from _parts(index, begin(prompt, choice) if index else first, asked.stop or [])
    return last


def _parts(index: int, stream: Stream, stops: list[str]) -> Generator[Part, None, Part]:
    """The parts of one answer. The last one is returned."""
    before, is_prefill = TextBeforeStop(stops), True
    with closing(stream.steps()) as steps:
        while True:
            started = time.perf_counter()
            step, chunks = next(steps)
            guessed = own = ""
            for chunk in chunks:
                text = before.push(chunk.text)
                guessed, own = (guessed + text, own) if chunk.accepted else (guessed, own + text)
            seconds = time.perf_counter() - started
            if step.finish_reason is not None:
                own += before.flush()
                finish = Finish(step.finish_reason, stream.num_prompt_tokens, stream.stats)
                return Part(index, step, is_prefill, seconds, guessed + own, guessed, finish)
            yield Part(index, step, is_prefill, seconds, guessed + own, guessed)
            is_prefill = False


def seconds_saved(part: Part, plain_seconds: float | None) -> float:
    """By how much plain steps would have taken longer to commit what a step did: an estimate.

    Args:
        part: What the step did.
        plain_seconds: What a plain step takes, as measured after a short text. None if that is not known.
    """
    if part.is_prefill or plain_seconds is None:
        return 0.0
    return len(part.step.tokens) * plain_seconds - part.seconds


def options_of(lm: LanguageModel, asked: Asked, owner: str) -> dict[str, Any]:
    """How answers are drafted for.

    A request names a drafter; its options are those of whoever started the server, as they can load files and take any
    time. An owner's namespaces bear the owner's name, so that nobody can name another's.

    Raises:
        ForetokenError: If the drafter is not to be had, or cannot draft from what the request gives.
    """
    drafting = asked.foretoken or Drafting()
    recipe = lm.drafter if drafting.drafter in (None, str(lm.drafter)) else _named(str(drafting.drafter))
    namespace = None if drafting.namespace is None else f"{owner}/{drafting.namespace}"
    options: dict[str, Any] = {"drafter": recipe, "namespace": namespace}
    if drafting.budget is not None:
        options["budget"] = FixedBudget(drafting.budget)
    if drafting.references:
        options["references"] = drafting.references
    if asked.prediction is not None and recipe is not None:  # without a drafter, it was asked not to be used
        require_memory(recipe, "prediction")
        options["references"] = [*drafting.references, asked.prediction.content]
    return options


def _named(name: str) -> Recipe | None:
    if name == "none":
        return None
    if name.partition(":")[0] not in RECIPES or (name in RECIPES and name != DraftModel.name):
        return recipe_of(name)  # which says what there is
    raise RequestError(f"The drafter {name!r} needs options that are the server's to set: give a name alone.")


def sampling_of(lm: LanguageModel, asked: Asked) -> dict[str, Any]:
    """How tokens are chosen, but for the seed, and where answers end."""
    honoured = lm.engine.honours
    sampling = {
        name: value
        for name, value in asked.sampling.items()
        if name in honoured or value != NEUTRAL.get(name, math.nan)
    }
    return sampling | {"max_new_tokens": asked.max_new_tokens, "stop": asked.stop}
