"""Early exit: the model's own first layers guess what all of them will say; no second model, no second cache.

The drafting of LayerSkip (arXiv 2404.16710), with a threshold learned online as FREE's (arXiv 2310.05424) is. CALM
(arXiv 2207.07061) emits what an early layer says with confidence; here the full model verifies all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from foretoken.core.draft import Draft
from foretoken.drafters.draft_model import DraftModelDrafter


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
