"""Where guesses come from: one file, one idea, one paper. Each file has the drafter and its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foretoken.core.contracts import Drafter
from foretoken.core.errors import RequestError
from foretoken.drafters.anpd import AdaptiveNgram, Anpd
from foretoken.drafters.draft_model import DraftModel, DraftModelDrafter
from foretoken.drafters.early_exit import EarlyExit, EarlyExitDrafter
from foretoken.drafters.heads import HeadsDrafter, Speculator
from foretoken.drafters.lookahead import Lookahead, LookaheadDrafter
from foretoken.drafters.mixed import Mixed, MixedHeadsDrafter
from foretoken.drafters.ngram import Ngram, NgramMixer
from foretoken.drafters.prompt_lookup import PromptLookup, PromptLookupDrafter
from foretoken.drafters.recipe import Parts, Recipe, parse_recipe, sees_only_tokens
from foretoken.drafters.recycle import Recycle, RecycleDrafter
from foretoken.drafters.refined_heads import RefinedDrafter, RefinedSpeculator
from foretoken.drafters.window import WithWindow
from foretoken.ngrams.shared import SharedNgrams

__all__ = [
    "DEFAULT_DRAFTER",
    "DRAFTERS",
    "RECIPES",
    "TEXT_DRAFTERS",
    "AdaptiveNgram",
    "Anpd",
    "CustomDrafter",
    "DraftModel",
    "DraftModelDrafter",
    "EarlyExit",
    "EarlyExitDrafter",
    "HeadsDrafter",
    "Lookahead",
    "LookaheadDrafter",
    "Mixed",
    "MixedHeadsDrafter",
    "Ngram",
    "NgramMixer",
    "Parts",
    "PromptLookup",
    "PromptLookupDrafter",
    "Recipe",
    "Recycle",
    "RecycleDrafter",
    "RefinedDrafter",
    "RefinedSpeculator",
    "SharedNgrams",
    "Speculator",
    "WithWindow",
    "recipe_of",
]

# The one list of drafters: who adds one adds it here.
RECIPES: dict[str, type[Recipe]] = {
    recipe.name: recipe
    for recipe in (
        Mixed,
        Ngram,
        Anpd,
        PromptLookup,
        Recycle,
        Lookahead,
        DraftModel,
        EarlyExit,
        Speculator,
        RefinedSpeculator,
    )
}
DRAFTERS = tuple(RECIPES)
DEFAULT_DRAFTER = Mixed.name
TEXT_DRAFTERS = tuple(name for name, recipe in RECIPES.items() if sees_only_tokens(recipe))


def recipe_of(drafter: str | Recipe | Drafter | None) -> Recipe | None:
    """The recipe of the drafter that a caller asks for. None means plain decoding.

    Args:
        drafter: A name with or without options, such as "mixed" or "early-exit:layer=4"; a recipe; a drafter of the
            caller's own; or "none" or None for plain decoding.

    Raises:
        ForetokenError: If it is none of these.

    >>> recipe_of("anpd:max_order=3")
    Anpd(max_order=3)
    """
    if drafter is None or drafter == "none":
        return None
    if isinstance(drafter, str):
        return parse_recipe(drafter, RECIPES)
    if isinstance(drafter, Recipe):
        return drafter
    if isinstance(drafter, type) or not hasattr(drafter, "propose"):
        raise RequestError(f"The drafter is {drafter!r:.100}: give a name, a recipe, an object that drafts, or None.")
    return CustomDrafter(drafter)


@dataclass(frozen=True)
class CustomDrafter(Recipe):
    """A drafter object of the caller's own, used for every answer.

    Its probabilities are counted on if it says so in an attribute ``calibrated``, as ``NgramMixer`` does.

    Args:
        drafter: The drafter.
    """

    name = "custom"
    drafter: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "calibrated", getattr(self.drafter, "calibrated", False))

    def make(self, parts: Parts) -> Drafter:
        made: Drafter = self.drafter
        return made
