"""The methods that are compared, one a line: every drafter, and combinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretoken.core.budget import FixedBudget
from foretoken.core.errors import RequestError
from foretoken.drafters import (
    RECIPES,
    Anpd,
    DraftModel,
    EarlyExit,
    Lookahead,
    Mixed,
    Ngram,
    PromptLookup,
    Recipe,
    Recycle,
    RefinedSpeculator,
    Speculator,
)
from foretoken.drafters.recipe import parse_recipe
from foretoken.drafters.window import MixedWindow


@dataclass(frozen=True)
class Method:
    """A way to draft.

    Args:
        name: What ``--method`` calls it.
        recipe: Makes the drafter. If None, decoding is plain.
        drafted: The most guesses of a step. If None, just what pays.
        generate: Options of transformers' own ``generate``, which then answers, and only greedily. If None, our loop
            answers.
    """

    name: str
    recipe: Recipe | None
    drafted: int | None
    generate: Mapping[str, Any] | None = None

    @property
    def needs_draft_model(self) -> bool:
        """Whether it can do nothing without one."""
        return self.recipe is not None and self.recipe.name == DraftModel.name

    @property
    def needs_transformers(self) -> bool:
        """Whether only models of transformers have what it takes."""
        return self.generate is not None or isinstance(self.recipe, EarlyExit)

    @property
    def needs_heads(self) -> bool:
        """Whether it is measured only where there are trained heads."""
        recipe = self.recipe
        return recipe is not None and ("hidden" in recipe.needs or (isinstance(recipe, Mixed) and recipe.heads is True))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "drafted": self.drafted, "drafter": str(self.recipe or "none")}


WIDE, WIDE_FLOOR = 60, 0.003  # where rows cost next to nothing; so many candidates lookahead's 15, 5, 15 has
ANY_MODEL = "--draft-model"  # in the place of the smaller model that the measured model has

PLAIN = Method("plain", None, 0)

# With a fixed budget that suits it and, where its probabilities can be counted on, with just what pays.
METHODS = {
    method.name: method
    for method in (
        PLAIN,
        Method("anpd", Anpd(), 7),
        Method("prompt-lookup", PromptLookup(), 7),
        Method("ngram", Ngram(), 10),
        Method("ngram-wide", Ngram(floor=WIDE_FLOOR), WIDE),
        Method("ngram-adaptive", Ngram(), None),
        Method("recycle", Recycle(floor=WIDE_FLOOR), WIDE),
        Method("recycle-adaptive", Recycle(), None),
        Method("mixed", Mixed(heads=False), 10),
        Method("mixed-wide", Mixed(floor=WIDE_FLOOR, heads=False), WIDE),
        Method("mixed-wide-window", MixedWindow(floor=WIDE_FLOOR), WIDE),
        Method("mixed-adaptive", Mixed(heads=False), None),
        Method("lookahead", Lookahead(), WIDE),
        Method("lookahead-window", Lookahead(text=False), WIDE),
        Method("lookahead-adaptive", Lookahead(), None),
        Method("draft-model", DraftModel(ANY_MODEL, floor=0.0), 4),
        Method("draft-model-chain", DraftModel(ANY_MODEL, floor=0.0, trees=False), 7),
        Method("draft-model-adaptive", DraftModel(ANY_MODEL), None),
        Method("early-exit", EarlyExit(floor=0.0), 4),
        Method("early-exit-adaptive", EarlyExit(), None),
        Method("speculator", Speculator(floor=WIDE_FLOOR), 24),
        Method("speculator-chain", Speculator(floor=0.0, width=1), 4),
        Method("speculator-published", Speculator("4x3x2x2"), WIDE),
        Method("speculator-paths", Speculator("paths", leaves=16), WIDE),
        Method("speculator-adaptive", Speculator(), None),
        Method("refined-speculator", RefinedSpeculator(floor=WIDE_FLOOR), 24),
        Method("refined-speculator-chain", RefinedSpeculator(floor=0.0, width=1), 4),
        Method("refined-speculator-paths", RefinedSpeculator("paths", leaves=16), WIDE),
        Method("refined-speculator-adaptive", RefinedSpeculator(), None),
        Method("mixed-speculator", Mixed(floor=WIDE_FLOOR, heads=True), 24),
        Method("mixed-speculator-adaptive", Mixed(heads=True), None),
        Method("transformers", None, 0, generate={}),
        Method("transformers-lookup", None, 10, generate={"prompt_lookup_num_tokens": 10}),
    )
}


def choose_methods(
    names: Sequence[str], draft_model: bool, heads: bool = False, of_transformers: bool = True
) -> list[Method]:
    """Plain decoding and the methods of these names.

    Args:
        names: Of ``METHODS``, or drafters with options, such as "early-exit:layer=4". If empty, all of ``METHODS`` that
            can run.
        draft_model: Whether there is one.
        heads: Whether there are trained heads.
        of_transformers: Whether transformers runs the model: then early exit and its own loop are methods, too.

    Raises:
        ForetokenError: If there is no such method, or it needs what the model has not.
    """
    if not names:
        with_model = [method for method in METHODS.values() if draft_model or not method.needs_draft_model]
        with_engine = [method for method in with_model if of_transformers or not method.needs_transformers]
        return [method for method in with_engine if heads or not method.needs_heads]
    chosen = [METHODS.get(name) or _method(name) for name in dict.fromkeys(names)]
    for method in chosen:
        if method.needs_draft_model and not draft_model:
            raise RequestError(f"The method {method.name!r} needs a draft model: name one with --draft-model.")
        if method.needs_transformers and not of_transformers:
            raise RequestError(f"The method {method.name!r} needs a model of transformers: leave it out.")
    return [PLAIN, *(method for method in chosen if method is not PLAIN)]


def _method(text: str) -> Method:
    """A drafter that is no method yet, with the budget that it has at the doors."""
    name, colon, _ = text.partition(":")
    if name not in RECIPES or (name == DraftModel.name and colon):
        drafters = "a drafter with options; a draft model is named with --draft-model"
        raise RequestError(f"There is no method {text!r}: choose from {', '.join(METHODS)}, or {drafters}.")
    recipe = parse_recipe(text, RECIPES)
    return Method(text, recipe, None if recipe.calibrated else FixedBudget().num_tokens)
