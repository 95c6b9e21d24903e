"""Where guesses come from: one file, one idea, one paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foretoken.core.contracts import Drafter
from foretoken.core.errors import ForetokenError
from foretoken.drafters.anpd import AdaptiveNgram
from foretoken.drafters.draft_model import DraftModelDrafter
from foretoken.drafters.early_exit import EarlyExitDrafter
from foretoken.drafters.lookahead import LookaheadDrafter
from foretoken.drafters.ngram import NgramMixer
from foretoken.drafters.prompt_lookup import PromptLookupDrafter
from foretoken.drafters.recycle import RecycleDrafter
from foretoken.drafters.window import WithWindow
from foretoken.ngrams.shared import SharedNgrams

__all__ = [
    "DEFAULT_DRAFTER",
    "DRAFTERS",
    "TEXT_DRAFTERS",
    "AdaptiveNgram",
    "DraftModelDrafter",
    "EarlyExitDrafter",
    "LookaheadDrafter",
    "NgramMixer",
    "PromptLookupDrafter",
    "RecycleDrafter",
    "SharedNgrams",
    "WithWindow",
    "check_name",
    "make_drafter",
]

# These see tokens only, so that recorded answers judge them too.
TEXT_DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "ngram": NgramMixer,
    "anpd": AdaptiveNgram,
    "prompt-lookup": PromptLookupDrafter,
}
# All names; the others see what the target's logits say, or run a model themselves.
DEFAULT_DRAFTER = "mixed"
DRAFTERS = ("mixed", *TEXT_DRAFTERS, "recycle", "lookahead", "draft-model", "early-exit")


def make_drafter(name: str) -> Drafter | None:
    """The drafter of this name, one that sees tokens only, or None for "none".

    Raises:
        ForetokenError: If no such drafter has this name.
    """
    check_name(name, list(TEXT_DRAFTERS))
    return TEXT_DRAFTERS[name]() if name != "none" else None


def check_name(name: str, known: Sequence[str] = DRAFTERS) -> None:
    """Refuse a drafter's name that is not known.

    Raises:
        ForetokenError: If it is none of them, nor "none".
    """
    if name == "none" or name in known:
        return
    choice = f"choose one of {', '.join([*known, 'none'])}."
    if name in DRAFTERS:
        raise ForetokenError(f"The drafter {name!r} needs a model that runs, and there is none here: {choice}")
    raise ForetokenError(f"There is no drafter named {name!r}: {choice}")
