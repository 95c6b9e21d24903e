"""The methods that are compared: every drafter there is, and combinations, a line for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foretoken.bench.subject import Subject
from foretoken.core.budget import AdaptiveBudget, Budget, FixedBudget
from foretoken.core.contracts import Drafter
from foretoken.core.errors import ForetokenError
from foretoken.drafters import AdaptiveNgram, Memory, MixedNgram, PromptLookup
from foretoken.drafters.early_exit import EarlyExit
from foretoken.drafters.model import DraftModel
from foretoken.engines.exit import ExitTarget
from foretoken.engines.transformers import TransformersTarget, context_length


@dataclass(frozen=True)
class Method:
    """A way to draft.

    Args:
        name: What ``--method`` calls it.
        make: Makes a drafter that has seen nothing yet, of the subject, the target that will answer and ``settings``.
        drafted: The most guesses of a step; None for just what pays.
        settings: What the drafter is given.
        needs_draft_model: Whether it can do nothing without one.
    """

    name: str
    make: Callable[..., Drafter | None]
    drafted: int | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs_draft_model: bool = False

    def budget(self) -> Budget:
        """A budget that knows nothing yet."""
        return AdaptiveBudget() if self.drafted is None else FixedBudget(self.drafted)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "drafted": self.drafted, "settings": dict(self.settings)}


def _ngram(subject: Subject, target: TransformersTarget) -> MixedNgram:
    return MixedNgram(Memory(subject.background), trees=target.supports_trees)


def _draft_model(subject: Subject, target: TransformersTarget, **settings: Any) -> DraftModel:
    assert subject.draft_model is not None, "choose_methods sees to it"
    smaller = TransformersTarget(subject.draft_model, target.choice, max_length=context_length(subject.draft_model))
    return DraftModel(smaller, **settings)


def _early_exit(subject: Subject, target: TransformersTarget, share: float, **settings: Any) -> EarlyExit:
    num_layers = subject.model.config.get_text_config(decoder=True).num_hidden_layers
    return EarlyExit(ExitTarget(target, max(1, int(share * num_layers))), **settings)


PLAIN = Method("plain", lambda subject, target: None, 0)

# With a fixed budget that suits it and, where its probabilities can be counted on, with just what pays.
METHODS = {
    method.name: method
    for method in (
        PLAIN,
        Method("anpd", lambda subject, target: AdaptiveNgram(), 7),
        Method("prompt-lookup", lambda subject, target: PromptLookup(), 7),
        Method("ngram", _ngram, 10),
        Method("ngram-adaptive", _ngram, None),
        Method("draft-model", _draft_model, 4, {"floor": 0.0}, needs_draft_model=True),
        Method("draft-model-adaptive", _draft_model, None, needs_draft_model=True),
        Method("early-exit", _early_exit, 4, {"share": 1 / 3, "floor": 0.0}),
        Method("early-exit-adaptive", _early_exit, None, {"share": 1 / 3}),
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
