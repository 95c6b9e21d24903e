"""Early exit: the model's own first layers guess what all of them will say; no second model, no second cache.

The drafting of LayerSkip (arXiv 2404.16710), with a threshold learned online as FREE's (arXiv 2310.05424) is. CALM
(arXiv 2207.07061) emits what an early layer says with confidence; here the full model verifies all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foretoken.core.contracts import RewindableTarget
from foretoken.core.draft import Draft
from foretoken.core.errors import RequestError
from foretoken.drafters.draft_model import DraftModelDrafter
from foretoken.drafters.recipe import Parts, Recipe, option


class EarlyExitDrafter(DraftModelDrafter):
    """Draft with a target that shares the cache of the one that verifies.

    The cache then holds all of the context but its last token already, and must be left so. The arguments are those of
    ``DraftModelDrafter``; ``engines.exit.ExitTarget`` is such a target.
    """

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        num_shared, limit = len(context) - 1, self.target.max_draft_depth
        if limit is not None:  # the layers that are shared must not run there, not even for a draft
            max_tokens = min(max_tokens, limit)
        self._read = list(context[:num_shared])
        try:
            return super().propose(context, max_tokens)
        finally:
            self.target.rewind(num_shared)


@dataclass(frozen=True)
class EarlyExit(Recipe):
    """Early exit: the model's own first layers guess what all of them will say.

    Args:
        layer: After how many layers to leave. If None, a third of them.
        floor: As ``DraftModel`` has it.
        trees: As ``DraftModel`` has it.
    """

    name = "early-exit"
    calibrated = True
    runs_model = True
    layer: int | None = option(None, least=1)
    floor: float | None = option(None, least=0.0)
    trees: bool = True

    def check(self, parts: Parts) -> None:
        self._target(parts)

    def make(self, parts: Parts) -> EarlyExitDrafter:
        return EarlyExitDrafter(self._target(parts), floor=self.floor, trees=self.trees and parts.target.supports_trees)

    def _target(self, parts: Parts) -> RewindableTarget:
        if parts.exit_target is None:
            raise RequestError(
                "The drafter 'early-exit' runs a model's first layers, and this engine cannot: use another."
            )
        return parts.exit_target(self.layer)
