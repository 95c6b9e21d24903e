"""Driven: our loop over any decoder-only model of transformers whose cache can rewind."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from foretoken.core.contracts import Need, Scores, Top
from foretoken.core.draft import Draft
from foretoken.core.errors import ForetokenError, LogitsError
from foretoken.engines.transformers.attention import implementation, is_causal_over_rows
from foretoken.engines.transformers.choice import Choice, Compared, argmax, top
from foretoken.engines.transformers.inputs import PREPARES, overrides, refuse_own_inputs
from foretoken.engines.transformers.quantized import rows_share_a_scale
from foretoken.engines.transformers.tree_mask import tree_mask

PREFILL_CHUNK = 4096  # tokens
CROPPABLE = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)  # the last stands where layers share another's keys

COUNTS = ("get_seq_length", "get_mask_sizes", "get_query_offset")  # what a cache says of its layers


class TransformersTarget:
    """A causal language model, its cache, and one sequence.

    Args:
        model: Any ``AutoModelForCausalLM`` model with an attention cache.
        choice: How tokens are chosen; greedy by default.
        cache: A cache to go on with, whose tokens begin the prompt; a new one for every prompt where None.
        max_length: The most tokens of prompt and answer together; None for no limit.
        prefill_chunk: The most prompt tokens read in one forward, to bound memory on long prompts.

    Raises:
        ForetokenError: If the model is no causal language model or its cache cannot rewind.
    """

    provides: frozenset[Need] = frozenset({"top", "runner_up"})

    def __init__(
        self,
        model: PreTrainedModel,
        choice: Choice | None = None,
        *,
        cache: Cache | None = None,
        max_length: int | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:
        own_cache = rewindable_cache(model)
        refuse_own_inputs(model)
        self.model, self.choice = model, choice or Choice()
        self.device = input_device(model)
        self.max_length, self.prefill_chunk = max_length, prefill_chunk
        self._given_cache = cache
        self.cache = own_cache if cache is None else checked_cache(model, cache)
        self._windows = layer_windows(model)
        sliding = has_sliding_layers(self.cache)
        self._one_row = not is_causal_over_rows(model) or rows_share_a_scale(model)
        self.supports_trees = self._windows is not None and not sliding and not self._one_row
        # Attention takes a mask of float32 with any query; where weights are of several types, a query may be of each.
        dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
        self._mask_dtype = model.dtype if len(dtypes) == 1 else torch.float32
        self._rope_switch, self._context = rope_switch(model), context_length(model)
        self._reread_beyond = reread_beyond(model)
        self._vocab_size = model.config.get_text_config(decoder=True).vocab_size
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._last_row_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._ids = torch.empty(1, 0, dtype=torch.long, device=self.device)
        self._length = 0  # committed tokens: what the cache holds and, between keep and score, one more
        self._draft: Draft | None = None  # what the last score added to the cache, until keep
        self._mark = Mark(0, {})  # where the cache was before it

    @property
    def max_draft_depth(self) -> int | None:
        if self._one_row:
            return 0
        num_tokens = self._length + 1  # with the last token, which the next score brings
        if self._must_reread(num_tokens):
            return 0
        # Some models have no positions beyond their context, so that a draft must not reach there.
        room = None if self._context is None else max(self._context - num_tokens, 0)
        if self._rope_switch is not None:
            border, keeps_changing = self._rope_switch
            if num_tokens <= border:
                return border - num_tokens
            return 0 if keeps_changing else room
        return room

    @property
    def ids(self) -> Tensor:
        """The committed token ids, [1, length]."""
        return self._ids[:, : self._length]

    @torch.inference_mode()
    def prefill(self, prompt: Sequence[int]) -> Scores:
        if self._given_cache is None and self.cache.get_seq_length() > 0:
            self.cache = rewindable_cache(self.model)
        if self._must_reread(len(prompt)):
            self.cache.reset()
        start = self.num_cached
        if start >= len(prompt):
            raise ForetokenError(
                f"The cache already holds {start} tokens and the prompt has {len(prompt)}: "
                "give the whole conversation with at least one new token, or a new cache."
            )
        self._draft = None
        self._length = len(prompt)
        self._set_ids(0, prompt)
        # Where frequencies depend on a forward's longest position, chunks would mix them; and an attention function
        # that is given no mask may be wrong over several rows on top of others.
        chunk = self.prefill_chunk if self._rope_switch is None and not self._one_row else len(prompt)
        mark = self.mark()
        try:
            while len(prompt) - start > chunk:
                self._forward(self._ids[:, start : start + chunk], **self._last_row_only)
                start += chunk
                self.cache.crop(0)  # lets a sliding layer of a given cache drop what it needs no more
            logits = self._forward(self._ids[:, start : len(prompt)], **self._last_row_only)
        except BaseException:
            self.go_back(mark)
            raise
        self._check_cached(len(prompt), mark)
        self.cache.crop(0)
        return TransformersScores(self, logits[-1:], Draft())

    @torch.inference_mode()
    def score(self, last_token: int, draft: Draft) -> Scores:
        if self._draft is not None:
            raise RuntimeError("keep must follow score")
        # A token that the model does not have, of a damaged corpus for one, is never right, whatever stands for it.
        tokens = [token if 0 <= token < self._vocab_size else 0 for token in draft.tokens]
        input_ids = torch.tensor([[last_token, *tokens]], device=self.device)
        extra = {} if draft.is_chain else self._tree_arguments(draft, self._length)
        if self._must_reread(self._length + 1):
            input_ids = torch.cat([self.ids, input_ids], dim=1)
            self.cache.reset()
        self._mark = self.mark()
        try:
            logits = self._forward(input_ids, **extra)
            self._check_cached(self._length + 1 + len(draft), self._mark)
            self._set_ids(self._length, [last_token])
        except BaseException:  # layers that were reached have grown
            self.go_back(self._mark)
            raise
        self._length += 1
        self._draft = draft
        return TransformersScores(self, logits[-1 - len(draft) :], draft)

    @torch.inference_mode()
    def keep(self, path: Sequence[int]) -> None:
        if self._draft is None:  # after prefill, when all is kept
            return
        try:
            self._set_ids(self._length, [self._draft.tokens[node] for node in path])
            if tuple(path) != tuple(range(len(path))):
                self._gather(path)
            self.cache.crop(len(path) - len(self._draft))  # a negative count of tokens to drop
        except BaseException:
            self.go_back(self._mark)
            raise
        self._length += len(path)
        self._draft = None

    def mark(self) -> Mark:
        """Where the cache is now, to go back to."""
        layers: list[Any] = self.cache.layers
        sliding = [layer for layer in layers if type(layer) is DynamicSlidingWindowLayer]
        windows = {layer: (layer.keys, layer.values, layer.cumulative_length) for layer in sliding}
        return Mark(self.num_cached, windows)

    @torch.inference_mode()
    def go_back(self, mark: Mark) -> None:
        """Leave in the cache what it held at the mark, also where a forward was interrupted between two layers."""
        layers: list[Any] = self.cache.layers
        for layer in layers:
            if layer in mark.windows:  # what left the window is not there any more, so that the tensors were kept
                layer.keys, layer.values, layer.cumulative_length = mark.windows[layer]
                layer.is_initialized = layer.keys is not None
            elif mark.num_cached == 0:
                layer.reset()  # what was interrupted in a layer's first update has no shape to cut
            elif type(layer) is not DummyLayer and layer.is_initialized:
                layer.keys = layer.keys[..., : mark.num_cached, :]
                layer.values = layer.values[..., : mark.num_cached, :]
        self._draft = None

    def release(self) -> None:
        """Give the cache tensors like any others: those made here may not be written to outside of inference mode."""
        layers: list[Any] = self.cache.layers
        for layer in layers:
            if type(layer) is not DummyLayer and layer.is_initialized:
                layer.keys, layer.values = layer.keys.clone(), layer.values.clone()

    @property
    def num_cached(self) -> int:
        """How many tokens the cache holds."""
        return self.cache.get_seq_length()

    @torch.inference_mode()
    def rewind(self, num_tokens: int) -> None:
        """Leave only the first ``num_tokens`` tokens in the cache; what was scored and not kept goes too.

        Raises:
            ForetokenError: If the cache was given and has sliding layers, which do not keep what left their window.
        """
        refuse_sliding(self.cache)
        if num_tokens == 0 and self._given_cache is None:
            self.cache = rewindable_cache(self.model)  # also where a forward was interrupted between two layers
        else:
            self.cache.crop(num_tokens - self.num_cached)  # a negative count of tokens to drop
        self._length = num_tokens
        self._draft = None

    def _check_cached(self, num_read: int, mark: Mark) -> None:
        """Refuse what drops keys behind our back, or keeps none: what a draft added could not be told from the rest.

        Raises:
            ForetokenError: If the cache does not hold all that was read; it is then as it was at the mark.
        """
        num_cached = self.num_cached
        if num_cached == num_read:
            return
        self.go_back(mark)
        name = type(self.model).__name__
        if num_cached == 0:
            raise ForetokenError(
                f"{name} keeps no keys and values of what it reads, as in training mode with gradient checkpointing: "
                "call model.eval() first."
            )
        raise ForetokenError(
            f"The cache of {name} holds {num_cached} of the {num_read} tokens that were read, so something drops keys, "
            "and rejected guesses cannot be told from the rest: take it away, or use the model's own generate."
        )

    def _must_reread(self, num_tokens: int) -> bool:
        """Whether the forward that brings the text to so many tokens must read all of it again."""
        return self._reread_beyond is not None and self.num_cached <= self._reread_beyond < num_tokens

    def _forward(self, input_ids: Tensor, **extra: Any) -> Tensor:
        """Logits of the rows, [rows, vocab]; the cache grows by them."""
        if self._takes_positions and "position_ids" not in extra:
            start = self.cache.get_seq_length()
            extra["position_ids"] = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)[None]
        outputs = self.model(input_ids=input_ids, past_key_values=self.cache, use_cache=True, return_dict=True, **extra)
        logits: Tensor = outputs.logits[0]
        return logits

    def _tree_arguments(self, draft: Draft, num_cached: int) -> dict[str, Any]:
        """The mask, one per kind of layer where there are several, and the positions."""
        assert self._windows is not None, "decode makes a chain where trees are not supported"
        made = {
            kind: tree_mask(draft, num_cached, window, self._mask_dtype, self.device)
            for kind, window in self._windows.items()
        }
        masks = {kind: mask for kind, (mask, _) in made.items()}
        positions = next(iter(made.values()))[1]
        return {"attention_mask": next(iter(masks.values())) if len(masks) == 1 else masks, "position_ids": positions}

    def _gather(self, path: Sequence[int]) -> None:
        """Move the rows of ``path`` to where a chain would have written them."""
        start = self._length
        rows = torch.tensor(path, device=self.device) + start
        for layer in self.cache.layers:
            if isinstance(layer, DynamicLayer) and layer.is_initialized:  # layers that share another's keys are not
                for states in (layer.keys, layer.values):
                    assert states is not None
                    states[:, :, start : start + len(path)] = states.index_select(2, rows.to(states.device))

    def _set_ids(self, start: int, tokens: Sequence[int]) -> None:
        """Write token ids from ``start`` on, into a buffer that doubles, so that they need not be joined anew."""
        end = start + len(tokens)
        if end > self._ids.shape[1]:
            grown = self._ids.new_empty(1, 2 * end)
            grown[:, :start] = self._ids[:, :start]
            self._ids = grown
        if tokens:
            self._ids[0, start:end] = torch.tensor(tokens, device=self._ids.device)


class Mark(NamedTuple):
    """Where a cache was.

    Args:
        num_cached: How many tokens it held.
        windows: For each sliding layer its keys and values, None before the first token, and how many it had read.
    """

    num_cached: int
    windows: dict[Any, tuple[Tensor | None, Tensor | None, int]]


class TransformersScores(Scores):
    """Logits of a forward, [rows, vocab]; a row is processed when asked for, and once."""

    def __init__(self, target: TransformersTarget, logits: Tensor, draft: Draft) -> None:
        # Transformers' own loop chooses from float32: where two logits are one number there, the first token wins.
        self.logits = logits.float() if logits.dtype == torch.float64 else logits
        self.choice, self.draft = target.choice, draft
        self.ids = target.ids  # [1, length], up to row 0; a view, taken now because keep makes it longer
        self._chosen: dict[int, int] = {}
        self._compared: dict[int, Compared] = {}  # of rows whose choice was not the logits' argmax

    @torch.inference_mode()
    def choose(self, row: int) -> int:
        if row not in self._chosen:
            if not self.choice.is_argmax:
                self._compared[row] = self.choice.compare(self._row_ids(row), self.logits[row])
                self._chosen[row] = self._compared[row].best
            elif self.logits.device.type == "cpu":
                self._chosen[row] = argmax(self.logits[row])
            else:  # all rows at once, since every answer of the device costs a wait
                tokens = self.logits.argmax(-1)
                unknown = self.logits.gather(-1, tokens[:, None])[:, 0].isnan()
                self._chosen = dict(enumerate(tokens.masked_fill(unknown, -1).tolist()))
        if self._chosen[row] < 0:
            raise LogitsError
        return self._chosen[row]

    @torch.inference_mode()
    def runner_up(self, row: int) -> tuple[int, float]:
        chosen = self.choose(row)  # where there are processors, they are asked there and once
        return self._compared.get(row, Compared(self.logits[row], chosen)).runner_up

    @torch.inference_mode()
    def top(self, rows: Sequence[int], k: int) -> Top:
        every = len(rows) == len(self.logits) and list(rows) == list(range(len(rows)))
        tokens, probs = top(self.logits if every else self.logits[list(rows)], k)
        return Top(tokens.tolist(), probs.tolist())

    def _row_ids(self, row: int) -> Tensor:
        """The token ids up to and with a row, [1, length]."""
        path = self.draft.path(row - 1)
        return torch.cat([self.ids, self.ids.new_tensor([path])], dim=1) if path else self.ids


def rewindable_cache(model: PreTrainedModel) -> Cache:
    """An empty cache for the model that can drop its last tokens.

    Sliding layers keep all their keys: the window is the mask's matter, and what was dropped could not be restored.

    Raises:
        ForetokenError: If the model is no decoder-only language model, or keeps a state that cannot rewind.
    """
    name = type(model).__name__
    if getattr(model, "_is_stateful", False):
        raise ForetokenError(
            f"{name} keeps a recurrent state, which cannot go back to before a rejected guess: "
            "use its own generate, or a model with attention in every layer."
        )
    if hasattr(model, "get_base_model"):
        raise ForetokenError(
            f"{name} wraps a model that PEFT has adapted: call its merge_and_unload() first, "
            "or its generate with custom_generate=foretoken.generate."
        )
    takes_cache = "past_key_values" in inspect.signature(model.forward).parameters
    if _encodes(model) or not model.can_generate() or not takes_cache:
        raise ForetokenError(
            f"{name} is not a decoder-only language model with a cache of keys and values: "
            "load one that AutoModelForCausalLM knows, such as Llama."
        )
    cache = DynamicCache(config=model.config)
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            cache.layers[i] = DynamicLayer()
    return checked_cache(model, cache)


def input_device(model: PreTrainedModel) -> torch.device:
    """Where the model takes its inputs; not where its weights are, if accelerate hands them in layer by layer."""
    if model.device.type != "meta":
        return model.device
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    hooks = getattr(hook, "hooks", [hook])  # several in a row, or one
    devices = [device for one in hooks if (device := getattr(one, "execution_device", None)) is not None]
    return torch.device(devices[0]) if devices else model.device


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
        raise ForetokenError(
            f"{type(cache).__name__} counts tokens in a way of its own, so rejected guesses cannot be dropped from it: "
            "pass a DynamicCache or none, or use the model's own generate."
        )
    rigid = sorted({type(layer).__name__ for layer in cache.layers if type(layer) not in CROPPABLE})
    if rigid:
        raise ForetokenError(
            f"The cache of {type(model).__name__} has layers that cannot drop rejected guesses ({', '.join(rigid)}): "
            "pass a DynamicCache or none, or use the model's own generate."
        )
    cache.activate_past_recording()  # given sliding layers then wait for crop before they drop anything
    return cache


def has_sliding_layers(cache: Cache) -> bool:
    """Whether some layers keep only a window of the keys, which dropping tokens cannot move back for long."""
    return any(type(layer) is DynamicSlidingWindowLayer for layer in cache.layers)


def refuse_sliding(cache: Cache) -> None:
    """Refuse a cache that cannot go back to every earlier length.

    Raises:
        ForetokenError: If it has sliding layers.
    """
    if has_sliding_layers(cache):
        raise ForetokenError(
            "The cache that was given keeps only a window of the text, so it cannot go back far enough to draft from: "
            "pass none, or DynamicCache() without a config."
        )


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
    """The length beyond which the model's own generate reads the text anew, with other rotary frequencies.

    Phi-3's long variants do so where a text crosses the context that they were first trained on; None for all others.
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
