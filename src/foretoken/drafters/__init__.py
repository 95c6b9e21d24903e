"""Where guesses come from: one file, one idea, one paper."""

from __future__ import annotations

from collections.abc import Callable

from foretoken.core.contracts import Drafter
from foretoken.core.errors import ForetokenError
from foretoken.drafters.memory import Memory
from foretoken.drafters.mixed import MixedNgram
from foretoken.drafters.ngram import AdaptiveNgram
from foretoken.drafters.prompt_lookup import PromptLookup

__all__ = ["DRAFTERS", "AdaptiveNgram", "Memory", "MixedNgram", "PromptLookup", "make_drafter"]

DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "ngram": MixedNgram,
    "anpd": AdaptiveNgram,
    "prompt-lookup": PromptLookup,
}


def make_drafter(drafter: str | Drafter | None) -> Drafter | None:
    """The drafter of this name, a drafter as it is, or None for "none".

    Raises:
        ForetokenError: If no drafter has this name.
    """
    if not isinstance(drafter, str):
        return drafter
    if drafter == "none":
        return None
    if drafter not in DRAFTERS:
        known = ", ".join([*DRAFTERS, "none"])
        raise ForetokenError(f"There is no drafter named {drafter!r}: choose one of {known}.")
    return DRAFTERS[drafter]()
