"""Attention implementations that are known to hide from each row of a forward what comes after it."""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

EAGER = "eager_attention_forward"  # each model of transformers has one of its own
ROWS_OVER = "foretoken_rows_over_"  # goes before a name while decoding attends row by row; see row_attention.py
MASK_OF = {
    "sdpa_attention_forward": "sdpa_mask",
    "flash_attention_forward": "flash_attention_mask",
    "flex_attention_forward": "flex_attention_mask",
    EAGER: "eager_mask",
}
logger = logging.getLogger("foretoken")


def is_causal_over_rows(model: PreTrainedModel) -> bool:
    """Whether the attention of all layers is transformers' own, with the mask that belongs to it.

    One that the user registered, or put in the place of another, need not have a causal mask: without a mask function
    of the same name it is given none at all, which is right for a single row and wrong for several.
    """
    name = implementation(model)
    modules = list(model.get_decoder().modules())
    if _names(modules) <= {name} and _is_known(name) and all(_runs_theirs(module, name) for module in modules):
        return True
    _warn(name)
    return False


def implementation(model: PreTrainedModel) -> str:
    """The name of the attention function of the model's text layers."""
    return str(model.config.get_text_config(decoder=True)._attn_implementation).removeprefix(ROWS_OVER)


def _names(modules: list[nn.Module]) -> set[str]:
    """The attention functions that the modules ask for; a mask is made for that of the whole."""
    configs = {id(config): config for module in modules if (config := vars(module).get("config")) is not None}
    names = {getattr(config, "_attn_implementation", None) for config in configs.values()}
    return {name.removeprefix(ROWS_OVER) for name in names if name is not None}


def _is_known(name: str) -> bool:
    """Whether function and mask of this name are transformers', and made for each other."""
    function, mask = ALL_ATTENTION_FUNCTIONS.get(name), ALL_MASK_ATTENTION_FUNCTIONS.get(name)
    if mask is None or not _is_theirs(mask):
        return False
    if function is None:
        return name == "eager" and mask.__name__ == MASK_OF[EAGER]
    return _is_theirs(function) and MASK_OF.get(function.__name__) == mask.__name__


def _runs_theirs(module: nn.Module, name: str) -> bool:
    """Whether a module is not attention, or is attention with transformers' own code."""
    if "is_causal" not in vars(module) and "Attention" not in type(module).__name__:
        return True
    # Accelerate puts a forward on the object, which calls the one that was there.
    forward = vars(module).get("_old_forward", module.forward)
    eager = vars(sys.modules[type(module).__module__]).get(EAGER) if name == "eager" else None
    return _is_theirs(forward) and (eager is None or _is_theirs(eager))


def _is_theirs(function: Any) -> bool:
    """Whether a function was written in transformers; by its globals, since a wrapper may take over a module's name."""
    return str(getattr(function, "__globals__", {}).get("__name__", "")).startswith("transformers.")


@cache
def _warn(name: str) -> None:
    logger.warning(
        "The attention function %r is not one of transformers' own in every layer, so nobody knows whether it masks "
        "several rows: nothing is drafted with it. Use sdpa, eager or a flash attention to draft.",
        name,
    )
