"""Any drafter by its name, made for one answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from foretoken.core.budget import Budget
from foretoken.core.contracts import Drafter
from foretoken.core.draft import Draft
from foretoken.core.errors import ForetokenError
from foretoken.core.lazy import lazy
from foretoken.drafters import (
    DRAFTERS,
    RECIPES,
    DraftModelDrafter,
    EarlyExitDrafter,
    LookaheadDrafter,
    NgramMixer,
    Parts,
    RecycleDrafter,
    SharedNgrams,
    check_name,
)
from foretoken.engines.transformers.exit import ExitTarget
from foretoken.engines.transformers.second_model import draft_target
from foretoken.engines.transformers.target import TransformersTarget

MEASURED_ROWS, MEASURED_TIMES = (1, 8, 32, 72), 4  # the largest window and its guesses are 72 on average
EXIT_SHARE = 1 / 3  # of the layers, before an early exit whose place is not given
AS_PUBLISHED = ("anpd", "prompt-lookup")  # which know nothing of their chances, and draft a fixed number of tokens


@dataclass(frozen=True)
class Situation:
    """What a drafter may be made of.

    Args:
        target: The target that will answer.
        remember: Gives what the answer's namespace remembers; called where that is needed.
        references: Documents, as tokens.
        draft_model: A smaller model of the same tokens, or None.
        exit_layer: After how many layers to exit early; a third of them where None.
    """

    target: TransformersTarget
    remember: Callable[[], SharedNgrams]
    references: Sequence[Sequence[int]] = ()
    draft_model: PreTrainedModel | None = None
    exit_layer: int | None = None

    @lazy
    def memory(self) -> SharedNgrams:
        """What the answer's namespace remembers."""
        return self.remember()

    def drafting(
        self, drafter: str | Drafter | None, budget: Budget | None = None
    ) -> tuple[Drafter | None, Budget | None]:
        """The drafter of this name, or the one that is given, and its budget.

        Where no budget is given it is what pays for a drafter whose probabilities can be counted on, as the namespace
        has learned it; a ``NgramMixer`` of the caller's brings what it has learned itself.

        Raises:
            ForetokenError: If there is no such drafter, or it cannot draft for this target.
        """
        if isinstance(drafter, str):
            calibrated = drafter not in (*AS_PUBLISHED, "none")
            return self._make(drafter), budget or (self.memory.budget if calibrated else None)
        if drafter is not None and (isinstance(drafter, type) or not hasattr(drafter, "propose")):
            raise ForetokenError(f"The drafter is {drafter!r}: give a name, an object that drafts, or None.")
        return drafter, budget or (drafter.memory.budget if isinstance(drafter, NgramMixer) else None)

    def _make(self, name: str) -> Drafter | None:
        check_name(name)
        if name in ("mixed", "ngram"):
            trees = self.target.supports_trees
            return NgramMixer(
                self.memory,
                references=self.references,
                trees=trees,
                price=self.memory.budget.row_price,
                recycle=name == "mixed",
            )
        if name in MADE:
            return MADE[name](self)
        return RECIPES[name]().make(Parts(self.target)) if name != "none" else None

    def _lookahead(self) -> LookaheadDrafter:
        require_trees(self.target)
        budget = self.memory.budget
        if budget.costs.most_rows <= 1:
            for rows, seconds in measured_rows(self.target.model):
                budget.learn_cost(rows, seconds)
        return LookaheadDrafter(seconds=budget.seconds)

    def _draft_model(self) -> DraftModelDrafter:
        if self.draft_model is None:
            raise ForetokenError('The drafter "draft-model" needs a smaller model: name one with draft_model.')
        return DraftModelDrafter(draft_target(self.draft_model, self.target.choice), trees=self.target.supports_trees)

    def _early_exit(self) -> EarlyExitDrafter:
        num_layers = self.target.model.config.get_text_config(decoder=True).num_hidden_layers
        third = max(1, int(EXIT_SHARE * num_layers))
        layer = third if self.exit_layer is None else self.exit_layer
        return EarlyExitDrafter(ExitTarget(self.target, layer), trees=self.target.supports_trees)


def require_trees(target: TransformersTarget) -> None:
    """Refuse a model that lookahead decoding cannot draft for.

    Raises:
        ForetokenError: If it scores chains only.
    """
    if not target.supports_trees:
        raise ForetokenError(
            f"{type(target.model).__name__} takes no draft trees here, and lookahead decoding needs them: "
            "load it with the attention implementation sdpa or eager, or use one of "
            f"{', '.join(name for name in DRAFTERS if name != 'lookahead')}, which draft chains here."
        )


_MEASURED: WeakKeyDictionary[PreTrainedModel, list[tuple[int, float]]] = WeakKeyDictionary()


def measured_rows(model: PreTrainedModel) -> list[tuple[int, float]]:
    """Numbers of rows and the seconds of a step over them, measured once for each model, in a second or so.

    Lookahead decoding chooses its window by that, where other drafters learn it as they go. No request has a part in
    it, so that it tells nobody of another's.
    """
    if model not in _MEASURED:
        target = TransformersTarget(model)
        target.prefill([0])
        sizes = (1,) if target.max_draft_depth == 0 else MEASURED_ROWS  # a context may be too short for any guess
        _MEASURED[model] = [(rows, _seconds(target, rows)) for rows in sizes * MEASURED_TIMES]
    return _MEASURED[model]


def _seconds(target: TransformersTarget, num_rows: int) -> float:
    """How long a step over so many rows takes, whatever their tokens."""
    num_guesses = num_rows - 1
    started = time.perf_counter()
    target.score(0, Draft((0,) * num_guesses, (-1,) * num_guesses)).choose(0)
    target.keep(())
    seconds = time.perf_counter() - started
    target.rewind(1)  # so that a short context is enough
    return seconds


MADE: dict[str, Callable[[Situation], Drafter]] = {
    "recycle": lambda situation: RecycleDrafter(),
    "lookahead": Situation._lookahead,
    "draft-model": Situation._draft_model,
    "early-exit": Situation._early_exit,
}
