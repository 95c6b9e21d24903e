"""Quantized models whose rows depend on the other rows of a forward."""

from __future__ import annotations

import logging
from functools import cache

from transformers import PreTrainedModel

SHARING = "torch.ao.nn.quantized.dynamic."  # by name: torch will not have these layers for ever

logger = logging.getLogger("foretoken")


def rows_share_a_scale(model: PreTrainedModel) -> bool:
    """Whether torch quantizes the model's activations as they come, with one scale for all rows of a forward.

    A guess beside a token then changes the token's own logits, and by far more than rounding does.
    """
    shared = any(type(module).__module__.startswith(SHARING) for module in model.modules())
    if shared:
        _warn(type(model).__name__)
    return shared


@cache
def _warn(name: str) -> None:
    logger.warning(
        "%s has layers of torch's quantize_dynamic, where each row of a forward changes the others: nothing is drafted "
        "with it. Use a model that is not quantized, or one whose rows have scales of their own, to draft.",
        name,
    )
