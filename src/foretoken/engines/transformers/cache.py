"""What a model computed of one sequence, and how it goes back when guesses are rejected."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from foretoken.core.errors import ModelError, RequestError
from foretoken.engines.transformers.inputs import input_device
from foretoken.memory.prefixes import Kept

CROPPABLE = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)  # the last stands where layers share another's keys
ARGUMENTS = ("past_key_values", "cache_params")  # of forward, for the cache; the second is Mamba's
COUNTS = ("get_seq_length", "get_mask_sizes", "get_query_offset")  # what a cache says of its layers


class Mark(NamedTuple):
    """Where a cache was.

    Args:
        num_cached: How many tokens it held.
        windows: For each sliding layer its keys and values, None before the first token, and how many it had read.
    """

    num_cached: int
    windows: dict[Any, tuple[Tensor | None, Tensor | None, int]]


class KVCache:
    """The token ids of one sequence, and the keys and values of each. It can go back to an earlier length.

    Args:
        model: Whose keys and values they are.
        states: A cache of transformers to go on with, whose tokens begin the prompt. If None, every prompt gets a new
            one.

    Raises:
        ForetokenError: If the model is no decoder-only language model, or the cache cannot rewind.
    """

    def __init__(self, model: PreTrainedModel, states: Cache | None = None) -> None:
        new = rewindable_cache(model)  # says what is wrong with the model before what is wrong with the cache
        self._is_given = states is not None
        self._start(model, new if states is None else checked_cache(model, states))

    def _start(self, model: PreTrainedModel, states: Cache) -> None:
        self._model, self.states = model, states
        self.argument = refuse_other_models(model)
        self._ids = torch.empty(1, 0, dtype=torch.long, device=input_device(model))
        self._length = 0  # tokens whose ids count

    @property
    def num_cached(self) -> int:
        """How many tokens have keys and values."""
        return self.states.get_seq_length()

    @property
    def ids(self) -> Tensor:
        """The token ids, [1, length]."""
        return self._ids[:, : self._length]

    @property
    def takes_trees(self) -> bool:
        """Whether rows of several branches may be kept or dropped."""
        return not self.slides

    @property
    def rereads(self) -> bool:
        """Whether accepted tokens must be read again after others were rejected."""
        return False

    @property
    def slides(self) -> bool:
        """Whether some layers keep only a window of the keys, which dropping tokens cannot move back for long."""
        return any(type(layer) is DynamicSlidingWindowLayer for layer in self.states.layers)

    @property
    def has_blocks(self) -> bool:
        """Whether the keys and values of some tokens can be taken out, and put into another cache."""
        layers: list[Any] = self.states.layers
        return (
            not self._is_given and bool(layers) and all(type(layer) in (DynamicLayer, DummyLayer) for layer in layers)
        )

    def block(self, start: int, end: int) -> Kept:
        """A copy of the keys and values of some tokens."""
        states: list[tuple[Tensor, Tensor] | None] = []
        layers: list[Any] = self.states.layers
        for layer in layers:
            has_own = not isinstance(layer, DummyLayer)  # which stands where a layer shares another's
            both = (layer.keys, layer.values) if has_own else None
            states.append(both and (both[0][..., start:end, :].clone(), both[1][..., start:end, :].clone()))
        return Kept(states, sum(part.nbytes for pair in states if pair for part in pair))

    def fill(self, blocks: Sequence[list[tuple[Tensor, Tensor] | None]]) -> None:
        """Let an empty cache hold the keys and values of such copies, one after the other."""
        for i, parts in enumerate(zip(*blocks, strict=True)):
            pairs = [pair for pair in parts if pair is not None]
            if pairs:
                keys, values = zip(*pairs, strict=True)
                self.states.update(torch.cat(keys, dim=-2), torch.cat(values, dim=-2), i)

    def begin(self, prompt: Sequence[int]) -> None:
        """Another sequence, whose keys and values are to come; those of a cache that was given stay."""
        if not self._is_given and self.num_cached > 0:
            self.states = rewindable_cache(self._model)
        self._length = 0
        self.append(prompt)

    def clear(self) -> None:
        """Forget all keys and values."""
        self.states.reset()

    def append(self, tokens: Sequence[int]) -> None:
        """Append ids to a buffer that doubles, so that they are not copied at every step."""
        end = self._length + len(tokens)
        if end > self._ids.shape[1]:
            grown = self._ids.new_empty(1, 2 * end)
            grown[:, : self._length] = self.ids
            self._ids = grown
        if tokens:
            self._ids[0, self._length : end] = torch.tensor(tokens, device=self._ids.device)
        self._length = end

    def drop_out_of_window(self) -> None:
        """Let sliding layers of a cache that was given drop what they need no more."""
        self.states.crop(0)

    def keep(self, path: Sequence[int], tokens: Sequence[int]) -> None:
        """Of rows that were scored on top of the ids, keep those of a path and drop the others.

        Args:
            path: Of the rows, in order.
            tokens: Of all rows.
        """
        if tuple(path) != tuple(range(len(path))):
            self._gather(path)
        self.states.crop(len(path) - len(tokens))  # a negative count of tokens to drop
        self.append([tokens[row] for row in path])

    def _gather(self, path: Sequence[int]) -> None:
        """Move the rows of ``path`` to where a chain would have written them."""
        start = self._length
        rows = torch.tensor(path, device=self._ids.device) + start
        for layer in self.states.layers:
            if isinstance(layer, DynamicLayer) and layer.is_initialized:  # layers that share another's keys are not
                for states in (layer.keys, layer.values):
                    assert states is not None
                    states[:, :, start : start + len(path)] = states.index_select(2, rows.to(states.device))

    def drop_last(self, num_tokens: int) -> None:
        """Forget the keys and values of the last tokens. Sliding layers go on holding what ``keep`` may go back to."""
        layers: list[Any] = self.states.layers
        for layer in layers:
            if type(layer) is not DummyLayer and layer.is_initialized:
                layer.keys, layer.values = layer.keys[..., :-num_tokens, :], layer.values[..., :-num_tokens, :]
            if type(layer) is DynamicSlidingWindowLayer:
                layer.cumulative_length -= num_tokens

    def has_read(self, num_rows: int) -> None:
        """A forward over so many rows is done."""

    def mark(self, num_rows: int = 1) -> Mark:
        """Where the cache is now, to go back to.

        Args:
            num_rows: Over how many rows the next forward goes.
        """
        layers: list[Any] = self.states.layers
        sliding = [layer for layer in layers if type(layer) is DynamicSlidingWindowLayer]
        windows = {layer: (layer.keys, layer.values, layer.cumulative_length) for layer in sliding}
        return Mark(self.num_cached, windows)

    @torch.inference_mode()
    def go_back(self, mark: Mark) -> None:
        """Leave in the cache what it held at the mark, also if a forward was interrupted between two layers."""
        layers: list[Any] = self.states.layers
        for layer in layers:
            if layer in mark.windows:  # what left the window is not there any more, so that the tensors were kept
                layer.keys, layer.values, layer.cumulative_length = mark.windows[layer]
                layer.is_initialized = layer.keys is not None
            elif mark.num_cached == 0:
                layer.reset()  # what was interrupted in a layer's first update has no shape to cut
            elif type(layer) is not DummyLayer and layer.is_initialized:
                layer.keys = layer.keys[..., : mark.num_cached, :]
                layer.values = layer.values[..., : mark.num_cached, :]

    @torch.inference_mode()
    def rewind(self, num_tokens: int) -> None:
        """Leave only the first ``num_tokens`` tokens.

        Raises:
            ForetokenError: If the cache was given and has sliding layers, which do not keep what left their window.
        """
        self.refuse_sliding()
        if num_tokens == 0 and not self._is_given:
            self.states = rewindable_cache(self._model)  # also if a forward was interrupted between two layers
        else:
            self.states.crop(num_tokens - self.num_cached)  # a negative count of tokens to drop
        self._length = num_tokens

    def release(self) -> None:
        """Make its tensors like any others: those made here may not be written to outside of inference mode."""
        layers: list[Any] = self.states.layers
        for layer in layers:
            if type(layer) is not DummyLayer and layer.is_initialized:
                layer.keys, layer.values = layer.keys.clone(), layer.values.clone()

    def check_holds(self, num_read: int, mark: Mark) -> None:
        """Refuse what drops keys behind our back, or keeps none: what a draft added could not be told from the rest.

        Raises:
            ForetokenError: If the cache does not hold all that was read; it is then as it was at the mark.
        """
        num_cached = self.num_cached
        if num_cached == num_read:
            return
        self.go_back(mark)
        name = type(self._model).__name__
        if num_cached == 0:
            raise ModelError(
                f"{name} keeps no keys and values of what it reads, as in training mode with gradient checkpointing: "
                "call model.eval() first."
            )
        raise ModelError(
            f"The cache of {name} holds {num_cached} of the {num_read} tokens that were read, so something drops keys, "
            "and rejected guesses cannot be told from the rest: take it away, or use the model's own generate."
        )

    def refuse_first_layers(self) -> None:
        """Refuse to share the first layers with a drafter.

        Raises:
            ForetokenError: If they cannot go back to every earlier length.
        """
        self.refuse_sliding()

    def refuse_sliding(self) -> None:
        """Refuse a cache that cannot go back to every earlier length.

        Raises:
            ForetokenError: If it has sliding layers.
        """
        if self.slides:
            raise RequestError(
                "The cache that was given keeps only a window of the text, so it cannot go back far enough to draft "
                "from: pass none, or DynamicCache() without a config."
            )


class FirstLayers(KVCache):
    """The first layers of another cache, as they are when it is rewound.

    Args:
        full: The cache to share with.
        model: The model of these layers.
        num_layers: How many they are.

    Raises:
        ForetokenError: If the cache has sliding layers.
    """

    def __init__(self, full: KVCache, model: PreTrainedModel, num_layers: int) -> None:
        full.refuse_first_layers()
        super().__init__(model, DynamicCache())
        self._full, self._num_layers = full, num_layers

    @property
    def num_cached(self) -> int:
        return self._full.num_cached

    def rewind(self, num_tokens: int) -> None:
        # Anew each time: the other may have begun another sequence, and has read on.
        self.states.layers = self._full.states.layers[: self._num_layers]
        self._ids = self._full.ids.clone()
        super().rewind(num_tokens)


def rewindable_cache(model: PreTrainedModel) -> Cache:
    """An empty cache for the model that can drop its last tokens.

    Sliding layers keep all their keys: the window is the mask's matter, and what was dropped could not be restored.

    Raises:
        ForetokenError: If the model is no decoder-only language model, or keeps a state that cannot rewind.
    """
    refuse_other_models(model)
    cache = DynamicCache(config=model.config)
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            cache.layers[i] = DynamicLayer()
    return checked_cache(model, cache)


def refuse_other_models(model: PreTrainedModel) -> str:
    """Refuse what is no decoder-only language model with a cache.

    Returns:
        The argument of its forward that takes the cache.

    Raises:
        ForetokenError: If it is none.
    """
    name = type(model).__name__
    if hasattr(model, "get_base_model"):
        raise ModelError(
            f"{name} wraps a model that PEFT has adapted: call its merge_and_unload() first, "
            "or its generate with custom_generate=foretoken.generate."
        )
    taken = inspect.signature(model.forward).parameters
    argument = next((argument for argument in ARGUMENTS if argument in taken), None)
    if _encodes(model) or not model.can_generate() or argument is None:
        raise ModelError(
            f"{name} is not a decoder-only language model with a cache of keys and values: "
            "load one that AutoModelForCausalLM knows, such as Llama."
        )
    return argument


def _encodes(model: PreTrainedModel) -> bool:
    """Whether rows see what comes after them: an encoder with a decoder, or one alone, as BERT is."""
    blind = getattr(model.config, "is_decoder", None) is False and any(
        getattr(module, "is_causal", True) is False for module in model.modules()
    )
    return bool(model.config.is_encoder_decoder) or blind


def checked_cache(model: PreTrainedModel, cache: Cache) -> Cache:
    """The cache, ready to be cropped.

    Only layers that hold one key and one value per token are taken: recurrent states cannot go back, and the choices of
    sparse attention's indexes, where they tie, depend on how many rows are scored at once.

    Raises:
        ForetokenError: If one of its layers cannot drop tokens, or it does not count them as its layers do.
    """
    if any(getattr(type(cache), name) is not getattr(DynamicCache, name) for name in COUNTS):
        raise ModelError(
            f"{type(cache).__name__} counts tokens in a way of its own, so rejected guesses cannot be dropped from it: "
            "pass a DynamicCache or none, or use the model's own generate."
        )
    rigid = sorted({type(layer).__name__ for layer in cache.layers if type(layer) not in CROPPABLE})
    if rigid:
        raise ModelError(
            f"The cache of {type(model).__name__} has layers that cannot drop rejected guesses ({', '.join(rigid)}): "
            "pass a DynamicCache or none, or use the model's own generate."
        )
    cache.activate_past_recording()  # given sliding layers then wait for crop before they drop anything
    return cache
