"""A cache for models with a recurrent state: it goes back to an earlier state instead of dropping rows.

A state sums up all that was read, so that no row can be taken out of it. When guesses are rejected, the state before
that forward comes back, and the next forward reads the accepted tokens again, as its first rows. A rejection costs
rows, and never a forward.

Transformers copies a new state over the old one. In these layers the new one takes its place, so that a reference to
the old one is all that must be kept. A forward over one row writes in place, and no guess can be rejected after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from foretoken.core.errors import ModelError, RequestError
from foretoken.engines.transformers.cache import KVCache, Mark


class StateLayer(LinearAttentionLayer):
    """States whose tensors stay as they are when new ones take their place.

    The state of a convolution is its last inputs. Without a recurrent state beside it the inputs of the last forward
    are kept, so that rows can be dropped from them.
    """

    def __init__(self, number_of_states: int = 1, **kwargs: Any) -> None:
        super().__init__(number_of_states, **kwargs)
        self._inputs: dict[int, Tensor] = {}  # of each convolution: its state, and what the last forward read

    @property
    def has_recurrent_state(self) -> bool:
        """Whether more than the inputs of convolutions is kept."""
        return any(state is not None for state in self.recurrent_states.values())

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        before = self.conv_states[state_idx]
        if before is None:
            first: Tensor = super().update_conv_state(conv_states, state_idx, conv_kernel_size, **kwargs)
            return first
        inputs = torch.cat([before, conv_states], dim=-1)
        self.conv_states[state_idx] = inputs[..., -before.shape[-1] :].clone()
        if not self.has_recurrent_state:
            self._inputs[state_idx] = inputs
        return inputs

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        before = self.recurrent_states[state_idx]
        if before is None:
            first: Tensor = super().update_recurrent_state(recurrent_states, state_idx, **kwargs)
            return first
        new = recurrent_states.to(before)
        if new.untyped_storage().nbytes() > new.nbytes:  # a part of something larger, which it would keep alive
            new = new.clone()
        self.recurrent_states[state_idx] = new
        return new

    def crop(self, tokens_to_remove: int) -> None:
        """Drop rows of the last forward, whose number is negative; only without a recurrent state."""
        for state_idx, inputs in self._inputs.items():
            state, end = self.conv_states[state_idx], inputs.shape[-1] + tokens_to_remove
            assert state is not None
            self.conv_states[state_idx] = inputs[..., end - state.shape[-1] : end].clone()
        self.forget_inputs()

    def forget_inputs(self) -> None:
        """No row of the last forward will be dropped."""
        self._inputs = {}


class StateAndAttentionLayer(StateLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc, override]
    """States, and the keys and values of an attention beside them."""

    def __init__(self, number_of_states: int = 1, **kwargs: Any) -> None:
        LinearAttentionAndFullAttentionLayer.__init__(self, number_of_states, **kwargs)
        self._inputs = {}

    def crop(self, tokens_to_remove: int) -> None:
        StateLayer.crop(self, tokens_to_remove)
        DynamicLayer.crop(self, tokens_to_remove)


States = tuple[dict[int, Tensor | None], dict[int, Tensor | None]]  # of convolutions, and recurrent ones


class RecurrentCache(KVCache):
    """The token ids of one sequence, and the states of a model that read them, or all but the last of them.

    Where ``num_cached`` is less than the number of ids, the next forward must begin with the ids that are left.

    Args:
        model: Whose states they are.

    Raises:
        ForetokenError: If the model is no decoder-only language model, or keeps its state in a way of its own.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._start(model, new_states(model))
        self._num_read = 0  # what a cache without attention does not count
        self._before: tuple[Mark, dict[Any, States]] | None = None  # the last forward, if it can be taken back

    @property
    def has_blocks(self) -> bool:
        return False

    @property
    def num_cached(self) -> int:
        if any(isinstance(layer, CacheLayerMixin) for layer in self.states.layers):
            return super().num_cached
        return self._num_read if self.states.has_previous_state() else 0

    @property
    def takes_trees(self) -> bool:
        return False

    @property
    def rereads(self) -> bool:
        return any(layer.has_recurrent_state for layer in self._state_layers())

    def begin(self, prompt: Sequence[int]) -> None:
        self.clear()
        self._length = 0
        self.append(prompt)

    def clear(self) -> None:
        self.states, self._num_read, self._before = new_states(self._model), 0, None

    def drop_out_of_window(self) -> None:
        for layer in self._state_layers():
            layer.forget_inputs()

    def has_read(self, num_rows: int) -> None:
        self._num_read += num_rows

    def mark(self, num_rows: int = 1) -> Mark:
        mark = Mark(self.num_cached, {})
        states = {layer: (dict(layer.conv_states), dict(layer.recurrent_states)) for layer in self._state_layers()}
        self._before = (mark, states) if num_rows > 1 else None
        return mark

    @torch.inference_mode()
    def go_back(self, mark: Mark) -> None:
        """Leave what the cache held at the mark; or nothing, if states were written in place since, to be read again.

        The ids stay.
        """
        if self._before is None or self._before[0] is not mark or mark.num_cached == 0:
            self.clear()
            return
        for layer, (conv_states, recurrent_states) in self._before[1].items():
            layer.conv_states, layer.recurrent_states = dict(conv_states), dict(recurrent_states)
            layer.forget_inputs()
        layers: list[Any] = self.states.layers
        for layer in layers:
            if isinstance(layer, DynamicLayer) and layer.is_initialized:
                DynamicLayer.crop(layer, min(0, mark.num_cached - DynamicLayer.get_seq_length(layer)))
        self._num_read = mark.num_cached

    def keep(self, path: Sequence[int], tokens: Sequence[int]) -> None:
        num_rejected = len(tokens) - len(path)
        if num_rejected and self.rereads:
            assert self._before is not None
            self.go_back(self._before[0])
        elif num_rejected:
            self.states.crop(-num_rejected)
            self._num_read -= num_rejected
        self.append([tokens[row] for row in path])

    def rewind(self, num_tokens: int) -> None:
        raise NotImplementedError("a recurrent state goes back to before the last forward, and no further")

    def release(self) -> None:
        layers: list[Any] = self.states.layers
        for layer in layers:
            if isinstance(layer, DynamicLayer) and layer.is_initialized:
                assert layer.keys is not None and layer.values is not None
                layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        for layer in self._state_layers():
            for states in (layer.conv_states, layer.recurrent_states):
                states.update({i: state.clone() for i, state in states.items() if state is not None})

    def refuse_first_layers(self) -> None:
        raise ModelError(
            f"{type(self._model).__name__} keeps a recurrent state, which its first layers cannot share: "
            "use another drafter than an early exit."
        )

    def first_states(self) -> list[Tensor]:
        """The states of the first layer that has any."""
        layer = self._state_layers()[0]
        return [
            state
            for kind in (layer.conv_states, layer.recurrent_states)
            for state in kind.values()
            if state is not None
        ]

    def weigh_states(self, weight: float) -> None:
        """Multiply all recurrent states by a number."""
        for layer in self._state_layers():
            layer.recurrent_states = {
                i: None if state is None else state * weight for i, state in layer.recurrent_states.items()
            }

    def _state_layers(self) -> list[StateLayer]:
        return [layer for layer in self.states.layers if isinstance(layer, StateLayer)]


def cache_of(model: PreTrainedModel, states: Cache | None = None) -> KVCache:
    """The cache for one sequence of a model; see ``KVCache``.

    Args:
        model: The model.
        states: A cache of transformers to go on with. If None, every prompt gets a new one.

    Raises:
        ForetokenError: If the model is no decoder-only language model, its cache cannot go back, or one was given for
            a model with a recurrent state.
    """
    if not is_recurrent(model):
        return KVCache(model, states)
    cache = RecurrentCache(model)
    if states is not None:
        raise RequestError(
            f"past_key_values was given, and {type(model).__name__} keeps a recurrent state, which cannot go back to "
            "before a rejected guess in a cache made elsewhere: pass none, and the whole conversation as the prompt."
        )
    return cache


def is_recurrent(model: PreTrainedModel) -> bool:
    """Whether the model keeps a state that sums up what it read."""
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    layers = [DYNAMIC_LAYER_TYPE_MAPPING.get(kind, DynamicLayer) for kind in kinds]
    return getattr(model, "_is_stateful", False) or any(
        issubclass(layer, LinearAttentionCacheLayerMixin) for layer in layers
    )


def new_states(model: PreTrainedModel) -> Cache:
    """An empty cache for the model, with layers that can go back.

    Raises:
        ForetokenError: If the model has states of another kind.
    """
    cache = DynamicCache(config=model.config)
    kinds: dict[type, Any] = {
        DynamicLayer: lambda layer: layer,
        DummyLayer: lambda layer: layer,
        DynamicSlidingWindowLayer: lambda layer: DynamicLayer(),  # the window is the mask's matter
        LinearAttentionLayer: lambda layer: StateLayer(layer.number_of_states),
        LinearAttentionAndFullAttentionLayer: lambda layer: StateAndAttentionLayer(layer.number_of_states),
    }
    strange = sorted({type(layer).__name__ for layer in cache.layers if type(layer) not in kinds})
    cache.layers = [layer if strange else kinds[type(layer)](layer) for layer in cache.layers]
    if strange or not any(isinstance(layer, StateLayer) for layer in cache.layers):
        raise refusal(model)
    return cache


def refusal(model: PreTrainedModel) -> ModelError:
    """What to say of a model whose states are not in a cache that transformers has for them."""
    return ModelError(
        f"{type(model).__name__} keeps a recurrent state in a way of its own, which cannot go back to before a "
        "rejected guess: use its own generate, or another model."
    )
