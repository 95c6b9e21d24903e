"""The options of an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from foretoken.core.budget import Budget
from foretoken.core.contracts import Drafter
from foretoken.core.errors import RequestError
from foretoken.core.sampling import RANGES, Sampling
from foretoken.drafters import Recipe
from foretoken.engines.base import Engine, Exact, Messages

Prompt = str | Messages


class Options(TypedDict, total=False):
    """How to answer. What is left out, or None, follows the model's own settings.

    Keys:
        max_new_tokens: The most tokens to add, at least 1.
        temperature: 0 is greedy; above 0 samples.
        top_k: Sample from the k most probable tokens; 0 for all.
        top_p: Sample from the most probable tokens that make up this probability, in (0, 1].
        min_p: Drop tokens less probable than this share of the best one, in [0, 1].
        repetition_penalty: Above 1 makes tokens of the prompt and the answer less likely; above 0.
        presence_penalty: Subtracted from the logit of every token that the answer holds.
        frequency_penalty: Subtracted from a token's logit for each time that the answer holds it.
        seed: Decides the text under sampling. If None, the engine draws one (transformers from torch's generator).
        processors: Further changes of the logits, called as the engine's library calls its own.
        grammar: What the answer has to be, in llama.cpp's GBNF or llguidance's Lark. All other tokens are forbidden.
        json_schema: A JSON schema that the answer follows; likewise.
        stop: Strings that end the answer, which keeps them, beside the model's own. It ends where one first stands in
            its text; a string that names a special token is also found, though the text skips it.
        drafter: A name in ``foretoken.drafters.DRAFTERS``, which options may follow, such as "mixed" or
            "early-exit:layer=4"; a recipe, such as ``EarlyExit(layer=4)``; a drafter of your own; "none" or None for
            plain decoding.
        budget: How many tokens to draft. If None, as many as should save time; seven with "anpd", "prompt-lookup" and
            a drafter of your own.
        references: Documents that the answer may quote or edit; "mixed" and "ngram" draft from them.
        namespace: Whose earlier answers to draft from, and where to remember this one; None to remember nothing.
        tools: Functions that the chat template tells the model of, each as OpenAI's API describes it. How calls are
            written is the model's matter: they stand in the text.
        exact: Whether drafted logits must be plain decoding's in every bit, as ``foretoken.load`` has it. If None, as
            the model was loaded.
        generation_config: A ``GenerationConfig`` used instead of the model's own (transformers only).
    """

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    processors: Sequence[Callable[..., Any]]
    grammar: str | None
    json_schema: Mapping[str, Any] | None
    stop: str | Sequence[str] | None
    drafter: str | Recipe | Drafter | None
    budget: Budget | None
    references: Sequence[str] | None
    namespace: str | None
    tools: Sequence[Mapping[str, Any]] | None
    exact: Exact | None
    generation_config: Any


SAMPLING = (*RANGES, "processors")  # the options that are fields of ``Sampling``


def split_options(engine: Engine, options: dict[str, Any]) -> tuple[Sampling, dict[str, Any]]:
    """The sampling that options ask for, and the options that only this engine takes.

    Args:
        engine: Which answers.
        options: All that say how tokens are chosen; others have been taken out.

    Raises:
        ForetokenError: If one is out of its range, or the engine does not take it.
    """
    sampling = Sampling(**{name: options.pop(name) for name in SAMPLING if name in options})
    own = {name: value for name, value in options.items() if value is not None}
    for name in own:
        if name not in engine.own_options:
            raise RequestError(f"{name} is no option of the {engine.name} engine: leave it out.")
    return sampling, own
