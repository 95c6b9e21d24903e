"""Where a model takes its inputs, and whether it prepares them as transformers does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, PreTrainedModel

from foretoken.core.errors import ModelError

PREPARES = "prepare_inputs_for_generation"
# What else decides what a forward of generate is given.
GOES_ON = ("_update_model_kwargs_for_generation", "_prepare_cache_for_generation", "_prefill")


def refuse_own_inputs(model: PreTrainedModel) -> None:
    """Refuse a model that is given other inputs by its own generate than by our loop.

    Learned prompts (PEFT's prompt, P- and prefix tuning) come in that way, and so do the masks and tokens that a few
    models add. Where a model overrides the method, it is asked about a small prompt and a token after it: what it
    prepares there must be what every other model prepares.

    Raises:
        ForetokenError: If so.
    """
    own = [name for name in GOES_ON if overrides(model, name)]
    if overrides(model, PREPARES) and not _prepares_alike(model):
        own.append(PREPARES)
    if own:
        raise ModelError(
            f"{type(model).__name__} has a {own[0]} of its own, which drafted decoding would pass by, as a learned "
            "prompt needs it: leave out custom_generate, or use a model without it."
        )


def overrides(model: PreTrainedModel, name: str) -> bool:
    """Whether a method of transformers' generate was replaced, by the model's class or on this very object."""
    return name in vars(model) or getattr(type(model), name, None) is not getattr(GenerationMixin, name)


def _prepares_alike(model: PreTrainedModel) -> bool:
    """Whether the model prepares the same inputs as transformers, for a prompt and for one more token."""
    ids = torch.zeros(1, 3, dtype=torch.long, device="cpu")
    empty, filled = DynamicCache(), DynamicCache()
    filled.update(torch.zeros(1, 1, 2, 1, device="cpu"), torch.zeros(1, 1, 2, 1, device="cpu"), 0)
    usually: dict[str, Any] = {"attention_mask": None, "position_ids": torch.arange(3, device="cpu")[None]}
    usually |= {"use_cache": True, "logits_to_keep": 1}
    questions: list[dict[str, Any]] = [
        {"input_ids": ids, "past_key_values": empty, "next_sequence_length": None, "is_first_iteration": True},
        {"input_ids": ids, "past_key_values": filled, "next_sequence_length": 1},
    ]
    for question in questions:
        try:
            own = getattr(model, PREPARES)(**question | usually)
            usual = getattr(GenerationMixin, PREPARES)(model, **question | usually)
        except Exception:  # it asks for something that our loop does not give
            return False
        if not _alike(own, usual):
            return False
    return True


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two sets of inputs are the same, apart from values that are None."""
    given = {name for name in one.keys() | other.keys() if one.get(name) is not None or other.get(name) is not None}
    return all(_same(one.get(name), other.get(name)) for name in given)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one is other or (isinstance(one, bool | int | float | str) and one == other)


def input_device(model: PreTrainedModel) -> torch.device:
    """Where the model takes its inputs; not where its weights are, if accelerate hands them in layer by layer."""
    if model.device.type != "meta":
        return model.device
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    hooks = getattr(hook, "hooks", [hook])  # several in a row, or one
    devices = [device for one in hooks if (device := getattr(one, "execution_device", None)) is not None]
    return torch.device(devices[0]) if devices else model.device
