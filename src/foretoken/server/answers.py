"""The answers to one request, as the scheduler runs them: an item for the checks, then one for each forward."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

from foretoken.api.answer import Stream
from foretoken.api.grammar import Processor
from foretoken.api.language_model import LanguageModel, require_memory
from foretoken.api.options import Prompt
from foretoken.core.budget import FixedBudget
from foretoken.core.contracts import FinishReason, Step
from foretoken.core.costs import Median
from foretoken.core.errors import RequestError
from foretoken.core.stats import DecodeStats
from foretoken.drafters import RECIPES, DraftModel, Recipe, recipe_of
from foretoken.engines.base import Engine
from foretoken.server.logprobs import AnswerLogprobs, TokenLogprob
from foretoken.server.schema import Asked, ChatAsked, CompletionAsked, Drafting
from foretoken.server.stops import TextBeforeStop
from foretoken.server.tools import conversation, form_of, grammar_of

# What a setting is when it changes nothing, for engines that do not choose by it: clients like to send these.
NEUTRAL = {"top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}


@dataclass(frozen=True, slots=True)
class Finish:
    """How an answer ended.

    Args:
        reason: "stop" or "length".
        num_prompt_tokens: How many tokens its prompt had.
        num_cached_tokens: How many of them an earlier prompt had begun with, so that they were not read again.
        stats: What it cost. Its seconds go on while others get their forwards.
        exact: Whether drafted logits were plain decoding's in every bit.
    """

    reason: FinishReason
    num_prompt_tokens: int
    num_cached_tokens: int
    stats: DecodeStats
    exact: bool


@dataclass(frozen=True, slots=True)
class Part:
    """What one step added to an answer.

    Args:
        index: Which answer of the request.
        step: What was committed.
        is_prefill: Whether it is the step of the prompt.
        seconds: What it took.
        seconds_saved: By how much plain steps would have taken longer, by estimate.
        text: The text that is settled now, maybe none.
        guessed: The beginning of it that came from accepted guesses.
        wrong: The guesses that came next in the draft and were wrong, as text, for whoever asks to see them.
        finish: How the answer ended. None if it goes on.
        logprobs: Of the tokens whose text begins here, for whoever asks.
    """

    index: int
    step: Step
    is_prefill: bool
    seconds: float
    seconds_saved: float
    text: str
    guessed: str
    wrong: str = ""
    finish: Finish | None = None
    logprobs: Sequence[TokenLogprob] = ()


class PlainSteps:
    """What a step without a draft takes of late, whoever's it is. Its drafter's time does not count."""

    def __init__(self, lm: LanguageModel) -> None:
        self._median = Median()
        if lm.drafter is not None and lm.drafter.calibrated:  # then it is measured anyway, before any answer
            self._median.add(lm.costs.seconds(1))

    def saved(self, step: Step, seconds: float) -> float:
        """By how much plain steps would have taken longer to commit what a step did in these seconds: an estimate."""
        if not step.draft:
            self._median.add(seconds - step.draft_seconds)
        return len(step.tokens) * self._median.value - seconds if self._median else 0.0


class Shared:
    """What all answers share, in the scheduler's thread.

    Args:
        lm: The model.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.plain, self.grammars = PlainSteps(lm), lm.grammars
        self.form = form_of(lm)
        self.spelled = lru_cache(maxsize=1 << 16)(lm.engine.spelled)


@dataclass(frozen=True, slots=True)
class Ready:
    """The request has been read and can be answered."""


def answers(shared: Shared, asked: Asked, owner: str) -> Generator[Ready | Part, None, Part | None]:
    """Answer every prompt of a request ``n`` times, one answer after the other. The last part is returned.

    Args:
        shared: The model, and what is kept beside it.
        asked: The request.
        owner: Whose namespaces are drafted from.

    Raises:
        ForetokenError: With the first item, if the request cannot be honoured.
    """
    lm = shared.lm
    options = options_of(lm, asked, owner)
    sampling = sampling_of(lm, asked)
    prompts: list[Prompt]
    num, functions, form = asked.n or 1, list[Any](), shared.form
    if isinstance(asked, ChatAsked):
        turns, functions = conversation(asked, form)
        prompts = [turns]
    else:
        assert isinstance(asked, CompletionAsked)
        prompts = list(asked.prompt)
    if functions:
        sampling["tools"] = functions
    processor = _grammar(shared, asked)

    def begin(prompt: Prompt, choice: int) -> Stream:
        seed = None if asked.seed is None else asked.seed + choice
        own: Any = {} if processor is None else {"processors": [processor()]}
        return lm.stream(prompt, seed=seed, **sampling, **options, **own)

    first = begin(prompts[0], 0)
    if asked.num_logprobs is not None and "logprobs" not in first.provides:
        raise RequestError(f"The {lm.engine.name} engine does not tell logprobs: leave them out.")
    for prompt in prompts[1:]:  # so that a bad one is found before the first is answered
        lm.prepare(prompt, **sampling)
    yield Ready()
    last: Part | None = None
    for index, (prompt, choice) in enumerate(product(prompts, range(num))):
        if last is not None:
            yield last
        last = yield from _parts(index, begin(prompt, choice) if index else first, asked, shared)
    return last


def _grammar(shared: Shared, asked: Asked) -> Callable[[], Processor] | None:
    """Makes what keeps an answer to its form. None if it may say anything."""
    if isinstance(asked, ChatAsked) and asked.callable_tools:
        return shared.grammars.of_calls(grammar_of(asked, shared.form))
    schema = None if asked.response_format is None else asked.response_format.schema_to_follow
    return None if schema is None else shared.grammars.of_schema(schema, "The schema of response_format")


def _parts(index: int, stream: Stream, asked: Asked, shared: Shared) -> Generator[Part, None, Part]:
    """The parts of one answer. The last one is returned."""
    before, is_prefill = TextBeforeStop(asked.stop or []), True
    likely = None if asked.num_logprobs is None else AnswerLogprobs(shared.spelled, asked.num_logprobs)
    with closing(stream.steps()) as steps:
        while True:
            started = time.perf_counter()
            step, chunks = next(steps)
            guessed = own = ""
            texts = []
            for chunk in chunks:
                texts.append(chunk.text)
                text = before.push(chunk.text)
                guessed, own = (guessed + text, own) if chunk.accepted else (guessed, own + text)
            seconds = time.perf_counter() - started
            saved = 0.0 if is_prefill else shared.plain.saved(step, seconds)
            wrong = "" if asked.foretoken is None else _wrong(step, shared.lm.engine)
            is_last = step.finish_reason is not None
            text = guessed + own + (before.flush() if is_last else "")
            told = [] if likely is None else likely.settled(step, texts, text)
            part = Part(index, step, is_prefill, seconds, saved, text, guessed, wrong, logprobs=told)
            if step.finish_reason is not None:
                num_tokens = stream.num_prompt_tokens, stream.num_cached_tokens
                return replace(part, finish=Finish(step.finish_reason, *num_tokens, stream.stats, stream.exact))
            yield part
            is_prefill = False


def _wrong(step: Step, engine: Engine) -> str:
    """The guesses of the draft's main chain after the last one that was accepted, as text."""
    draft, node, tokens = step.draft.guesses(), step.path[-1] if step.path else -1, []
    while children := draft.children(node):
        node = children[0]
        tokens.append(draft.tokens[node])
    if not tokens:
        return ""
    detokenizer = engine.detokenizer(step.tokens[-1:])  # after any token, so that a space before the first word stays
    return "".join(map(detokenizer.push, tokens)) + detokenizer.flush()


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
    if drafting.exact is not None:
        options["exact"] = drafting.exact
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
