"""The hook: ``model.generate(..., custom_generate=foretoken.generate)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from foretoken.core.budget import Budget
from foretoken.core.contracts import Drafter
from foretoken.core.costs import CostCurve
from foretoken.core.errors import RequestError
from foretoken.core.stats import DecodeStats
from foretoken.drafters import DEFAULT_DRAFTER, CustomDrafter, DraftModel, EarlyExit, Parts, Recipe, recipe_of
from foretoken.engines.base import FOUND, Exact
from foretoken.engines.transformers.cache import ARGUMENTS
from foretoken.engines.transformers.cost_key import cost_key
from foretoken.engines.transformers.exactness import Exactness
from foretoken.engines.transformers.helpers import TransformersHelpers
from foretoken.engines.transformers.recurrent import cache_of
from foretoken.engines.transformers.request import read_request, refuse_modes, refuse_padding, refuse_positions
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.memory.costs import costs_of
from foretoken.memory.namespace import Namespace

# What generate() prepares and our own loop sees to; what begins with OUTPUTS only asks for records of the forwards.
_HANDLED = {"attention_mask", "position_ids", *ARGUMENTS, "use_cache", "logits_to_keep"}
OUTPUTS = "output_"

# There is one caller here, so that a model has one namespace: a caller who shares a model with others gives a
# ``NgramMixer`` of their own, which has a namespace to itself. By the model or the drafter, then by the model.
_NAMESPACES: WeakKeyDictionary[Any, WeakKeyDictionary[PreTrainedModel, Namespace]] = WeakKeyDictionary()


def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    drafter: str | Recipe | Drafter | None = DEFAULT_DRAFTER,
    budget: Budget | None = None,
    stats: DecodeStats | None = None,
    draft_model: PreTrainedModel | None = None,
    exit_layer: int | None = None,
    speculator: str | PathLike[str] | None = FOUND,
    exact: Exact = "auto",
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Transformers' generate with drafting; the same tokens as without, in fewer forwards.

    Do not call it: ``model.generate(**inputs, custom_generate=foretoken.generate)`` prepares everything and calls it.
    ``drafter`` and the arguments after it may be given to ``model.generate`` as well. Under sampling the seed is
    drawn from torch's generator, so ``torch.manual_seed`` decides the text; it is not the text that transformers' own
    sampling, which draws its numbers differently, gives for that seed.

    All calls with one model object count as one caller's: they draft from each other's answers and share what was
    learned of costs and gains. To keep callers apart, give each a ``NgramMixer`` of its own, or use ``LanguageModel``,
    which has namespaces.

    Args:
        model: The target.
        input_ids: The prompt, [1, length].
        logits_processor: As prepared by transformers.
        stopping_criteria: As prepared by transformers.
        generation_config: As prepared by transformers.
        drafter: A name in ``foretoken.drafters.DRAFTERS``, which options may follow, such as "mixed" or
            "early-exit:layer=4"; a recipe; a drafter of your own; "none" or None for plain decoding.
        budget: How many tokens to draft. If None, as many as should save time; seven with "anpd", "prompt-lookup" and
            a drafter of your own.
        stats: Filled with what the decode cost. If None, nothing is reported.
        draft_model: A smaller model of the same tokens, for the drafter "draft-model".
        exit_layer: After how many layers the drafter "early-exit" leaves. If None, a third of them.
        speculator: The folder of trained heads; see ``foretoken.load``.
        exact: Whether drafted logits must be plain decoding's in every bit; see ``foretoken.load``.
        **model_kwargs: As prepared by transformers.

    Returns:
        Token ids [1, length + new], or a ``GenerateDecoderOnlyOutput`` if ``return_dict_in_generate`` is set.

    Raises:
        ForetokenError: If the request is not one sequence of text, the model cannot rewind, or an argument cannot be
            honoured. Whatever is raised, a cache of the caller's then holds what it held before.
    """
    cache_of(model)  # says what is wrong with the model before what is wrong with its inputs
    unknown = sorted(
        name
        for name, value in model_kwargs.items()
        if name not in _HANDLED and not name.startswith(OUTPUTS) and not _is_empty(value)
    )
    if unknown:
        raise RequestError(
            f"custom_generate=foretoken.generate takes text only and was given {', '.join(unknown)}: "
            "leave it out, or leave out custom_generate."
        )
    caller = _arguments_of_caller()
    prepared = read_request(
        input_ids, model_kwargs.get("attention_mask"), logits_processor, stopping_criteria, generation_config
    )
    refuse_modes(model, generation_config, caller.get("assistant_model"), caller.get("synced_gpus"))
    refuse_positions(model_kwargs.get("position_ids"), prepared)
    refuse_padding(model, prepared)
    given = next((model_kwargs[name] for name in ARGUMENTS if model_kwargs.get(name) is not None), None)
    # The caller's own cache is filled, so that a conversation can go on; one that generate made gives way to ours.
    cache = given if getattr(given, "_is_user_defined", False) else None
    exactness = Exactness(model, exact)
    target = TransformersTarget(
        model, prepared.choice, cache=cache, prefill_chunk=prepared.prefill_chunk, exact=exactness
    )
    if prepared.num_padding and target.num_cached:
        raise RequestError(
            "The prompt is padded and past_key_values already holds tokens, so nobody knows which of them are padding: "
            "leave the padding out, or pass a new cache."
        )
    stats = DecodeStats() if stats is None else stats
    recipe = _recipe(drafter, draft_model, exit_layer)
    namespace = _namespace(model, recipe.drafter if isinstance(recipe, CustomDrafter) else model)
    costs = CostCurve()
    if recipe is not None and recipe.calibrated:
        key = cost_key(model, exact=bool(exactness.widths()))
        costs = costs_of(key, lambda: TransformersTarget(model, exact=exactness))
    parts = Parts.of(TransformersHelpers(model, speculator=speculator), target, lambda: namespace.ngrams, costs)
    made = None if recipe is None else recipe.make(parts)
    learning = namespace.new_budget(costs) if budget is None and recipe is not None and recipe.calibrated else None
    streamer: BaseStreamer | None = caller.get("streamer")
    request = prepared.on(target)
    if streamer is not None:
        request = replace(request, stop=_streaming(streamer, request.stop))
    tokens: list[int] = []
    start = target.cache.mark()
    try:
        for step in request.steps(made, budget or learning):
            stats.add(step)
            tokens += step.tokens
        if generation_config.return_dict_in_generate:
            target.catch_up()
    except BaseException:  # the caller cannot know which tokens of an answer that it did not get are in its cache
        target.go_back(start)
        raise
    finally:
        if learning is not None:
            namespace.hand_back(learning)
        if cache is not None or generation_config.return_dict_in_generate:
            target.cache.release()
    if streamer is not None:
        streamer.end()
    namespace.keep(tokens, own=getattr(made, "memory", None))
    sequences = torch.cat([input_ids, input_ids.new_tensor([tokens])], dim=1)
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(
            sequences=cast(torch.LongTensor, sequences), past_key_values=target.cache.states
        )
    return sequences


def _recipe(
    drafter: str | Recipe | Drafter | None, draft_model: PreTrainedModel | None, exit_layer: int | None
) -> Recipe | None:
    """The recipe of the drafter that is asked for.

    Raises:
        ForetokenError: If there is none, or it does not take what was given beside it.
    """
    for name, argument, given in (
        (DraftModel.name, "draft_model", draft_model),
        (EarlyExit.name, "exit_layer", exit_layer),
    ):
        if given is not None and drafter != name:
            raise RequestError(
                f"{argument} is for the drafter {name!r}, not for {drafter!r:.100}: leave one of the two out."
            )
    if drafter == DraftModel.name:
        if draft_model is None:
            raise RequestError("The drafter 'draft-model' needs a smaller model: give one as draft_model.")
        return DraftModel(draft_model)
    return EarlyExit(exit_layer) if drafter == EarlyExit.name else recipe_of(drafter)


def _namespace(model: PreTrainedModel, owner: Any) -> Namespace:
    """The namespace of all calls with a model that have the same owner: the model, or the caller's own drafter."""
    try:
        of_owner = _NAMESPACES.setdefault(owner, WeakKeyDictionary())
    except TypeError:  # a drafter that takes no weak reference, or no hash
        return Namespace()
    return of_owner.setdefault(model, Namespace())


def _streaming(streamer: BaseStreamer, stop: Callable[[Sequence[int]], bool] | None) -> Callable[[Sequence[int]], bool]:
    """The stop criterion, and the streamer after it, both asked about every token as transformers' own loop does."""

    def stop_and_put(context: Sequence[int]) -> bool:
        stopped = stop is not None and stop(context)
        streamer.put(torch.tensor(context[-1:], device="cpu"))
        return stopped

    return stop_and_put


def _arguments_of_caller() -> dict[str, Any]:
    """The arguments of the calling generate().

    Transformers 5.23 does not pass a function its ``streamer`` (``_extract_generation_mode_kwargs``), so that a
    script's ``TextIteratorStreamer`` would wait for ever, nor ``assistant_model`` and ``synced_gpus``. They are read
    from that call's frame.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not inspect.unwrap(GenerationMixin.generate).__code__:
        frame = frame.f_back
    return frame.f_locals if frame is not None else {}


def _is_empty(value: Any) -> bool:
    """Whether an argument brings nothing; generate() adds empty records of its own."""
    if isinstance(value, Mapping):
        return all(map(_is_empty, value.values()))
    return value is None or (isinstance(value, list | tuple) and all(map(_is_empty, value)))
