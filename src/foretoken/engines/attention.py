"""Which attention functions are known to let each of several rows see only what comes before it."""

from __future__ import annotations

import logging
from functools import cache

from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

logger = logging.getLogger("foretoken")


def is_causal_over_rows(model: PreTrainedModel) -> bool:
    """Whether the model's attention is one of transformers' own.

    One that the user registered need not have a causal mask: without a mask function of the same name it is given none
    at all, which is right for a single row and wrong for several.
    """
    name = implementation(model)
    function, mask = ALL_ATTENTION_FUNCTIONS.get(name), ALL_MASK_ATTENTION_FUNCTIONS.get(name)
    if (_is_theirs(function) or (function is None and name == "eager")) and _is_theirs(mask):
        return True
    _warn(name)
    return False


def _is_theirs(function: object) -> bool:
    return getattr(function, "__module__", "").startswith("transformers.")


def implementation(model: PreTrainedModel) -> str:
    """The name of the attention function of the model's text layers."""
    return str(model.config.get_text_config(decoder=True)._attn_implementation)


@cache
def _warn(name: str) -> None:
    logger.warning(
        "The attention function %r is not one of transformers' own, so nobody knows whether it masks several rows: "
        "nothing is drafted with it. Use sdpa, eager or a flash attention to draft.",
        name,
    )
