"""Any drafter by its name, made for one answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from foretoken.api.draft_model import draft_target
from foretoken.core.budget import AdaptiveBudget, Budget
from foretoken.core.contracts import Drafter, Target
from foretoken.core.draft import Draft
from foretoken.core.errors import ForetokenError
from foretoken.drafters import (
    DRAFTERS,
    TEXT_DRAFTERS,
    DraftModel,
    EarlyExit,
    Lookahead,
    Memory,
    MixedNgram,
    Recycle,
    check_name,
)
from foretoken.engines.exit import ExitTarget
from foretoken.engines.transformers import TransformersTarget

MEASURED_ROWS, MEASURED_TIMES = (1, 8, 32, 72), 4  # the largest window and its guesses are 72 on average
EXIT_SHARE = 1 / 3  # of the layers, before an early exit whose place is not given
AS_PUBLISHED = ("anpd", "prompt-lookup")  # which know nothing of their chances, and draft a fixed number of tokens


@dataclass(frozen=True)
class Situation:
    """What a drafter may be made of.

    Args:
        target: The target that will answer.
        memory: What the answer's namespace remembers; called where it is needed.
        budget: What is known of the costs of the target's rows.
        references: Documents, as tokens.
        draft_model: A smaller model of the same tokens, or None.
        exit_layer: After how many layers to exit early; a third of them where None.
    """

    target: TransformersTarget
    memory: Callable[[], Memory]
    budget: AdaptiveBudget
    references: Sequence[Sequence[int]] = ()
    draft_model: PreTrainedModel | None = None
    exit_layer: int | None = None

    def drafting(
        self, drafter: str | Drafter | None, budget: Budget | None = None
    ) -> tuple[Drafter | None, Budget | None]:
        """The drafter of this name, or the one that is given, and its budget.

        Where no budget is given it is what pays for a drafter whose probabilities can be counted on.

        Raises:
            ForetokenError: If there is no such drafter, or it cannot draft for this target.
        """
        calibrated = isinstance(drafter, MixedNgram)
        if (
            drafter is not None
            and not isinstance(drafter, str)
            and (isinstance(drafter, type) or not hasattr(drafter, "propose"))
        ):
            raise ForetokenError(f"The drafter is {drafter!r}: give a name, an object that drafts, or None.")
        if isinstance(drafter, str):
            calibrated = drafter not in AS_PUBLISHED
            drafter = self._make(drafter)
        return drafter, budget or (self.budget if calibrated else None)

    def _make(self, name: str) -> Drafter | None:
        check_name(name)
        if name in ("mixed", "ngram"):
            trees = self.target.supports_trees
            return MixedNgram(
                self.memory(),
                references=self.references,
                trees=trees,
                price=self.budget.row_price,
                recycle=name == "mixed",
            )
        if name in MADE:
            return MADE[name](self)
        return TEXT_DRAFTERS[name]() if name != "none" else None

    def _lookahead(self) -> Lookahead:
        require_trees(self.target)
        if self.budget.costs.most_rows <= 1:
            measure_rows(TransformersTarget(self.target.model), self.budget)
        return Lookahead(seconds=self.budget.seconds)

    def _draft_model(self) -> DraftModel:
        if self.draft_model is None:
            raise ForetokenError('The drafter "draft-model" needs a smaller model: name one with draft_model.')
        return DraftModel(draft_target(self.draft_model, self.target.choice), trees=self.target.supports_trees)

    def _early_exit(self) -> EarlyExit:
        num_layers = self.target.model.config.get_text_config(decoder=True).num_hidden_layers
        third = max(1, int(EXIT_SHARE * num_layers))
        layer = third if self.exit_layer is None else self.exit_layer
        return EarlyExit(ExitTarget(self.target, layer), trees=self.target.supports_trees)


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


def measure_rows(target: Target, budget: AdaptiveBudget) -> None:
    """Learn what forwards over several rows cost before the first answer, in a second or so.

    Lookahead decoding chooses its window by that, where other drafters learn it as they go.
    """
    target.prefill([0])
    for _ in range(MEASURED_TIMES):
        for rows in MEASURED_ROWS:
            started = time.perf_counter()
            target.score(0, Draft((0,) * (rows - 1), (-1,) * (rows - 1))).choose(0)
            target.keep(())
            budget.learn_cost(rows, time.perf_counter() - started)


MADE: dict[str, Callable[[Situation], Drafter]] = {
    "recycle": lambda situation: Recycle(),
    "lookahead": Situation._lookahead,
    "draft-model": Situation._draft_model,
    "early-exit": Situation._early_exit,
}
