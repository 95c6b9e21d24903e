"""The methods that are compared: every drafter there is, and combinations, a line for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from foretoken.core.budget import AdaptiveBudget, Budget, FixedBudget
from foretoken.core.contracts import Drafter
from foretoken.core.errors import ForetokenError
from foretoken.drafters import AdaptiveNgram, NgramMixer, PromptLookupDrafter, WithWindow
from foretoken.drafters.draft_model import DraftModelDrafter
from foretoken.drafters.early_exit import EarlyExitDrafter
from foretoken.drafters.lookahead import LookaheadDrafter
from foretoken.drafters.recycle import RecycleDrafter
from foretoken.engines.transformers.exit import ExitTarget
from foretoken.engines.transformers.second_model import draft_target
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.measure.subject import Subject
from foretoken.memory.namespace import Namespace


class Given(NamedTuple):
    """What a drafter may be made of: the subject, the target that will answer, its budget, and what is remembered."""

    subject: Subject
    target: TransformersTarget
    budget: Budget
    namespace: Namespace


@dataclass(frozen=True)
class Method:
    """A way to draft.

    Args:
        name: What ``--method`` calls it.
        make: Makes a drafter that has seen nothing yet, of what is given and ``settings``.
        drafted: The most guesses of a step; None for just what pays.
        settings: What the drafter is told besides.
        needs_draft_model: Whether it can do nothing without one.
        generate: Options of transformers' own ``generate``, which then answers, and only greedily. If None, our loop
            answers.
    """

    name: str
    make: Callable[..., Drafter | None]
    drafted: int | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs_draft_model: bool = False
    generate: Mapping[str, Any] | None = None

    def budget(self) -> Budget:
        """A budget that knows nothing yet."""
        return AdaptiveBudget() if self.drafted is None else FixedBudget(self.drafted)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "drafted": self.drafted, "settings": dict(self.settings)}


def _ngram(given: Given, **settings: Any) -> NgramMixer:
    if isinstance(given.budget, AdaptiveBudget):
        settings["price"] = given.budget.row_price
    return NgramMixer(given.namespace.ngrams, trees=given.target.supports_trees, **settings)


def _with_window(given: Given, window: int, ngram: int, **settings: Any) -> WithWindow:
    return WithWindow(_ngram(given, recycle=True, **settings), LookaheadDrafter(window, ngram, 1, text=False))


def _lookahead(given: Given, **settings: Any) -> LookaheadDrafter:
    costs = given.budget.seconds if isinstance(given.budget, AdaptiveBudget) else None
    return LookaheadDrafter(seconds=costs, **settings)


def _draft_model(given: Given, **settings: Any) -> DraftModelDrafter:
    model = given.subject.draft_model
    assert model is not None, "choose_methods sees to it"
    return DraftModelDrafter(
        draft_target(model, given.target.choice), **{"trees": given.target.supports_trees} | settings
    )


def _early_exit(given: Given, share: float, **settings: Any) -> EarlyExitDrafter:
    num_layers = given.subject.model.config.get_text_config(decoder=True).num_hidden_layers
    exit_target = ExitTarget(given.target, max(1, int(share * num_layers)))
    return EarlyExitDrafter(exit_target, trees=given.target.supports_trees, **settings)


def _plain(given: Given) -> None:
    return None


WIDE, WIDE_FLOOR = 60, 0.003  # where rows cost next to nothing; so many candidates lookahead's 15, 5, 15 has

PLAIN = Method("plain", _plain, 0)

# With a fixed budget that suits it and, where its probabilities can be counted on, with just what pays.
METHODS = {
    method.name: method
    for method in (
        PLAIN,
        Method("anpd", lambda given: AdaptiveNgram(), 7),
        Method("prompt-lookup", lambda given: PromptLookupDrafter(), 7),
        Method("ngram", _ngram, 10),
        Method("ngram-wide", _ngram, WIDE, {"floor": WIDE_FLOOR}),
        Method("ngram-adaptive", _ngram, None),
        Method("recycle", lambda given, **settings: RecycleDrafter(**settings), WIDE, {"floor": WIDE_FLOOR}),
        Method("recycle-adaptive", lambda given: RecycleDrafter(), None),
        Method("mixed", _ngram, 10, {"recycle": True}),
        Method("mixed-wide", _ngram, WIDE, {"recycle": True, "floor": WIDE_FLOOR}),
        Method("mixed-wide-window", _with_window, WIDE, {"window": 15, "ngram": 5, "floor": WIDE_FLOOR}),
        Method("mixed-adaptive", _ngram, None, {"recycle": True}),
        Method("lookahead", _lookahead, WIDE, {"window": 15, "ngram": 5, "guesses": 15}),
        Method("lookahead-window", _lookahead, WIDE, {"window": 15, "ngram": 5, "guesses": 15, "text": False}),
        Method("lookahead-adaptive", _lookahead, None),
        Method("draft-model", _draft_model, 4, {"floor": 0.0}, needs_draft_model=True),
        Method("draft-model-chain", _draft_model, 7, {"floor": 0.0, "trees": False}, needs_draft_model=True),
        Method("draft-model-adaptive", _draft_model, None, needs_draft_model=True),
        Method("early-exit", _early_exit, 4, {"share": 1 / 3, "floor": 0.0}),
        Method("early-exit-adaptive", _early_exit, None, {"share": 1 / 3}),
        Method("transformers", _plain, 0, generate={}),
        Method("transformers-lookup", _plain, 10, generate={"prompt_lookup_num_tokens": 10}),
    )
}


def choose_methods(names: Sequence[str], draft_model: bool) -> list[Method]:
    """Plain decoding and the methods of these names; all that can run where none is named.

    Args:
        names: Of ``METHODS``.
        draft_model: Whether there is one.

    Raises:
        ForetokenError: If there is no such method, or it needs a draft model.
    """
    for name in names:
        if name not in METHODS:
            raise ForetokenError(f"There is no method {name!r}: choose from {', '.join(METHODS)}.")
        if METHODS[name].needs_draft_model and not draft_model:
            raise ForetokenError(f"The method {name!r} needs a draft model: name one with --draft-model.")
    chosen = [METHODS[name] for name in dict.fromkeys(names)] if names else list(METHODS.values())
    return [PLAIN, *(m for m in chosen if m is not PLAIN and (draft_model or not m.needs_draft_model))]
