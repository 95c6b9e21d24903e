"""Where tokens stand: the context's length, windows of attention, and rotary positions that change with length."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedModel

from foretoken.engines.transformers.attention import implementation
from foretoken.engines.transformers.inputs import PREPARES, overrides


class Positions:
    """What a model's positions allow.

    Args:
        model: A decoder-only language model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.windows = layer_windows(model)
        self.are_taken = "position_ids" in inspect.signature(model.forward).parameters
        self._rope_switch, self._context = rope_switch(model), context_length(model)
        self._reread_beyond = reread_beyond(model)

    @property
    def depend_on_length(self) -> bool:
        """Whether rotary frequencies depend on a forward's longest position, so that chunks would mix them."""
        return self._rope_switch is not None

    def must_reread(self, num_cached: int, num_tokens: int) -> bool:
        """Whether the forward that brings the text to so many tokens must read all of it again."""
        return self._reread_beyond is not None and num_cached <= self._reread_beyond < num_tokens

    def max_draft_depth(self, num_tokens: int) -> int | None:
        """How far a forward may reach beyond so many tokens. None means no limit."""
        # Some models have no positions beyond their context, so that a draft must not reach there.
        room = None if self._context is None else max(self._context - num_tokens, 0)
        if self._rope_switch is None:
            return room
        border, keeps_changing = self._rope_switch
        if num_tokens <= border:
            return border - num_tokens
        return 0 if keeps_changing else room


def layer_windows(model: PreTrainedModel) -> dict[str, int | None] | None:
    """The sliding window, in tokens, of each kind of layer, None for full attention; None if trees cannot be masked."""
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None)
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    if (
        implementation(model) not in ("sdpa", "eager")
        or not takes_positions
        or getattr(config, "alibi", False)  # positions come from a two-dimensional mask there
        or not kinds <= {"full_attention", "sliding_attention"}
        or "local" in getattr(config, "attention_layers", ())  # GPT-Neo's window counts rows, not positions
    ):
        return None
    if not kinds:
        if window and not hasattr(sys.modules[type(model).__module__], "create_sliding_window_causal_mask"):
            return None  # a window in the config that the model may ignore
        return {"sliding_attention" if window else "full_attention": window}
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}


def rope_switch(model: PreTrainedModel) -> tuple[int, bool] | None:
    """Where rotary positions change with the length of the sequence, and whether they go on changing after.

    There the rows of one forward share the frequencies of its longest, so a draft must not cross the border.
    """
    config = model.config.get_text_config(decoder=True)
    for rope in _rope_parameters(getattr(config, "rope_parameters", None) or {}):
        if rope.get("rope_type") in ("longrope", "dynamic"):
            length = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            return int(length), rope["rope_type"] == "dynamic"
    return None


def reread_beyond(model: PreTrainedModel) -> int | None:
    """The length beyond which the model's own generate reads the text again, with other rotary frequencies.

    Phi-3's long variants do so where a text crosses the context they were first trained on. None for all others.
    """
    length = getattr(model.config, "original_max_position_embeddings", None)
    return length if overrides(model, PREPARES) else None


def _rope_parameters(parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rotary settings of a config, which may hold one set per kind of layer."""
    yield parameters
    yield from (value for value in parameters.values() if isinstance(value, dict))


def context_length(model: PreTrainedModel) -> int | None:
    """The most tokens that the model was made for, as its config says."""
    config = model.config.get_text_config(decoder=True)
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if not length or length < 0:
        return None
    for rope in _rope_parameters(getattr(config, "rope_parameters", None) or {}):
        scaled = rope.get("rope_type") in ("yarn", "linear", "dynamic")
        if scaled and rope.get("original_max_position_embeddings", length) == length:
            return int(length * rope.get("factor", 1.0))  # the config tells the length before it was stretched
    return int(length)
