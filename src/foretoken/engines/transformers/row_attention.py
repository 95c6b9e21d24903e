"""Attention of decoding, a row at a time: what a row sums depends on its own path and on nothing else.

Transformers' attention functions take all rows of a forward together, and a row's sums then run in an order that
depends on how many rows and keys there are. Here every row has a call of its own, of the same shape and over keys laid
out alike, whatever stands beside it: its last bit is the one that plain decoding gives it. The keys of a chain are read
where the cache holds them. The rows of a draft tree are laid out as the chain that plain decoding would have seen.

The heads of a group share their keys, so that they are the rows of one product. On a CPU that is also why a row costs
little: kernels for several rows in half precision are several times as fast as those for one.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foretoken.core.draft import Draft
from foretoken.core.errors import ModelError
from foretoken.engines.transformers.attention import EAGER, ROWS_OVER, implementation

REPLACED = ("sdpa", "eager")  # in whose place the rows are attended to one by one
REFUSED = ("position_bias", "sinks", "indices", "block_indices")  # arguments of attention that only some models give
ALIGNED = 64  # bytes, of which the address of a head's first key is a multiple, since kernels look at addresses
MOST_ALONE = 4  # heads of a group that are quicker one by one where bfloat16 has tiles
ROOM = 32  # so many numbers of 2 bytes are as long as that


class Run(NamedTuple):
    """Keys of some rows that follow each other, and where they go.

    Args:
        depth: How many rows of the path stand before the first of them.
        row: The first of them.
        num_rows: How many.
    """

    depth: int
    row: int
    num_rows: int


def _turns(paths: list[list[int]], first: int) -> Iterator[tuple[int, list[Run]]]:
    """In which order rows are attended to, each with the keys that must be moved to make its path a chain.

    Parents come before their children and a branch is followed to its end, so that few keys move.

    Args:
        paths: Of the rows of a forward.
        first: How many rows of the draft stand before these.
    """
    held = list(range(first + len(paths)))  # which row's keys stand at each depth; at first all stand as they were read
    for turn in sorted(range(len(paths)), key=paths.__getitem__):
        runs: list[Run] = []
        for depth, row in enumerate(paths[turn]):
            if held[depth] == row:
                continue
            held[depth] = row
            last = runs[-1] if runs else Run(-1, -1, 0)
            if (last.depth + last.num_rows, last.row + last.num_rows) == (depth, row):
                runs[-1] = last._replace(num_rows=last.num_rows + 1)
            else:
                runs.append(Run(depth, row, 1))
        yield turn, runs


class Rows:
    """The rows of a forward over the last token and a draft, for its attention.

    It holds the buffers that keys and values are laid out in, so one object serves all forwards of a target.

    Args:
        model: Whose forwards they are.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.configs = _attention_configs(model)
        self._buffers: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        self._places: dict[tuple[str, torch.Size, torch.device, torch.dtype], Tensor] = {}
        self.paths: list[list[int]] = []
        self.first = self.width = 0
        self.turns: list[tuple[int, list[Run]]] = []

    def begin(self, paths: list[list[int]], first: int, width: int) -> None:
        """Say which rows the next forward has.

        Args:
            paths: For every row of the draft, those from the last committed token to itself.
            first: Which of them the forward begins with; the cache holds those before.
            width: How many rows it has, those that only fill it up to this number with them.
        """
        self.paths, self.first, self.width = paths, first, width
        self.turns = list(_turns(self.answered, first))
        self._places.clear()

    @property
    def answered(self) -> list[list[int]]:
        """The paths of the rows that are no filling."""
        return self.paths[self.first : self.first + self.width]

    def laid_out(self, name: str, states: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy of keys or values, [1, heads, keys, size], in a buffer of its own, to be changed at will."""
        kind = name, states.shape, states.device, dtype
        place = self._places.get(kind)
        if place is None:  # the first layer of this shape in a forward
            place = self._places[kind] = self._place(name, states, dtype)
        return place.copy_(states)

    def _place(self, name: str, states: Tensor, dtype: torch.dtype) -> Tensor:
        _, heads, keys, size = states.shape
        room = -(-keys // ROOM) * ROOM
        needed = heads * room * size
        buffer = self._buffers.get((name, states.device, dtype))
        if buffer is None or buffer.numel() < needed:
            buffer = torch.empty(2 * needed, dtype=dtype, device=states.device)
            self._buffers[name, states.device, dtype] = buffer
        return buffer[:needed].view(1, heads, room, size)[:, :, :keys]


class Starts(tuple[int, ...]):
    """The first key that a row sees, by its depth in the draft; in the place of a mask."""


def row_paths(draft: Draft) -> list[list[int]]:
    """For each row of a forward over the last token and a draft, the rows from the first to itself.

    >>> row_paths(Draft((4, 1, 7), (-1, 0, -1)))
    [[0], [0, 1], [0, 1, 2], [0, 3]]
    """
    paths = [[0]]
    for node, parent in enumerate(draft.parents):
        paths.append([*paths[parent + 1], node + 1])
    return paths


_ROWS: ContextVar[Rows | None] = ContextVar("rows", default=None)  # of the forward that runs in this thread
_switching = threading.Lock()
_users: Counter[int] = Counter()  # how many forwards want a config's attention replaced, by the config's id


@contextmanager
def row_by_row(rows: Rows) -> Iterator[None]:
    """Let the model's forward attend row by row meanwhile, in this thread. Others may run it as it is.

    The model's configs name our function as long as any thread is in here. Forwards of the other threads then go
    through it to the function that was replaced.
    """
    with _switching:
        for config in rows.configs:
            _users[id(config)] += 1
            if _users[id(config)] == 1:
                config._attn_implementation = ROWS_OVER + str(config._attn_implementation)
    token = _ROWS.set(rows)
    try:
        yield
    finally:
        _ROWS.reset(token)
        with _switching:
            for config in rows.configs:
                _users[id(config)] -= 1
                if _users[id(config)] == 0:
                    config._attn_implementation = str(config._attn_implementation).removeprefix(ROWS_OVER)
                    del _users[id(config)]


def _attention_configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """The configs that the model's text layers read the name of their attention function from."""
    found = [model.config.get_text_config(decoder=True)]
    found += [vars(module)["config"] for module in model.get_decoder().modules() if "config" in vars(module)]
    return list({id(config): config for config in found if hasattr(config, "_attn_implementation")}.values())


def refuse_attention(model: PreTrainedModel) -> None:
    """Refuse a model whose attention we cannot do in its place.

    Raises:
        ForetokenError: If so, with a sentence that names the way out.
    """
    name = implementation(model)
    if name not in REPLACED:
        raise ModelError(
            f"exact=True needs attention that foretoken can do row by row, and {name!r} is not ours to replace: "
            'load the model with attn_implementation="sdpa", or leave exact out.'
        )
    if not model._can_set_attn_implementation():
        raise ModelError(
            f"exact=True needs attention that foretoken can do row by row, and {type(model).__name__} computes its own "
            "in a way that takes no other function: leave exact out."
        )


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Starts | Tensor | None,
    *,
    replaced: str,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers.

    Args:
        module: The layer that asks.
        query: [1, heads, rows, size].
        key: [1, key heads, keys, size], those of the rows last.
        value: [1, key heads, keys, size of values].
        attention_mask: What ``_mask`` made.
        replaced: The name of the function in whose place this one stands.
        scaling: What scores are multiplied by. If None, the root of 1 / size.
        softcap: Bounds scores by a tanh, as Gemma 2 has it.
        s_aux: A score for each head that takes part in the softmax and adds nothing, as GPT-OSS has it.
        **kwargs: What else the layer gives.

    Returns:
        [1, rows, heads, size of values], zeros for the rows of the filling; and no weights.

    Raises:
        ForetokenError: If the layer asks for more than is computed here.
    """
    rows = _ROWS.get()
    if rows is None:  # another thread decodes with this model just now, and this one does not
        eager: Any = vars(sys.modules[type(module).__module__]).get(EAGER)
        function: Any = ALL_ATTENTION_FUNCTIONS.get_interface(replaced, eager)
        given = {"scaling": scaling, "softcap": softcap, "s_aux": s_aux}
        kwargs |= {name: argument for name, argument in given.items() if argument is not None}
        attended: tuple[Tensor, Tensor | None] = function(module, query, key, value, attention_mask, **kwargs)
        return attended
    unknown = [name for name in REFUSED if kwargs.get(name) is not None]
    if unknown or not isinstance(attention_mask, Starts | None) or query.shape[0] != 1:
        what = unknown[0] if unknown else "a mask of its own"
        raise ModelError(f"The attention of {type(module).__name__} takes {what}, which is not computed row by row.")
    return _attended(rows, query, key, value, attention_mask, scaling, softcap, s_aux), None


def _attended(
    rows: Rows,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Starts | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """What the rows read of the values, [1, rows, heads, size of values]."""
    _, num_heads, num_rows, size = query.shape
    num_key_heads, num_keys = key.shape[1:3]
    before = num_keys - rows.first - num_rows  # keys of the committed text
    is_spelled = softcap is not None or sinks is not None or value.shape[-1] != size
    # Spelled out on a CPU, products in half precision take several times as long.
    dtype = torch.promote_types(key.dtype, torch.float32) if is_spelled and key.device.type == "cpu" else key.dtype
    keys, values = key, value  # read where the cache holds them, as long as they stand there as the row's path has them
    if dtype != key.dtype or not (_is_aligned(key) and _is_aligned(value)):
        keys, values = rows.laid_out("keys", key, dtype), rows.laid_out("values", value, dtype)
    group = num_heads // num_key_heads
    together = group if is_spelled else _together(group, dtype, key.device)
    heads, shared, copies = (num_heads, 1, 1) if together < group else (num_key_heads, group, together // group)
    queries = query.transpose(1, 2).to(dtype).reshape(num_rows, 1, heads, shared, size)
    if copies > 1:
        queries = queries.repeat(1, 1, 1, copies, 1)
    scale = size**-0.5 if scaling is None else scaling
    read: list[Tensor] = [query] * len(rows.turns)  # each to be replaced
    for row, runs in rows.turns:
        if runs and keys is key:
            keys, values = rows.laid_out("keys", key, dtype), rows.laid_out("values", value, dtype)
        for depth, moved, count in runs:
            keys.narrow(2, before + depth, count).copy_(key.narrow(2, before + moved, count))
            values.narrow(2, before + depth, count).copy_(value.narrow(2, before + moved, count))
        length = len(rows.paths[rows.first + row])
        start = starts[length - 1] if starts else 0
        seen = 2, start, before + length - start
        own = queries[row], keys.narrow(*seen), values.narrow(*seen)
        read[row] = (
            _spelled(*own, scale, softcap, sinks)
            if is_spelled
            else scaled_dot_product_attention(*own, scale=scale, enable_gqa=heads > num_key_heads)
        )
    done = torch.cat(read) if len(read) > 1 else read[0]
    done = done[:, :, :shared].reshape(1, len(read), num_heads, -1).to(query.dtype)
    filling = num_rows - len(read)
    return pad(done, (0, 0, 0, 0, 0, filling)) if filling else done


def _together(group: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many heads that share their keys are the rows of one product; more than there are, where one is repeated.

    Products of bfloat16 over a single row are the slowest on most CPUs, and the fastest on those with tiles for them.
    """
    if dtype != torch.bfloat16 or device.type != "cpu":
        return group
    if torch.cpu._is_amx_tile_supported():
        return 1 if group <= MOST_ALONE else group
    return max(2, group)


def _is_aligned(states: Tensor) -> bool:
    """Whether any run of keys begins at an aligned address in every head."""
    return states.is_contiguous() and states.shape[3] * states.element_size() % ALIGNED == 0


def _spelled(
    query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attention with what torch's function does not have."""
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if sinks is not None:
        column = sinks.to(scores.dtype).reshape(1, *scores.shape[1:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights[..., : key.shape[2]].to(value.dtype) @ value


def _mask(*, replaced: str, mask_function: Any = causal_mask_function, **kwargs: Any) -> Any:
    """A mask function of transformers: where each row begins to see, or None where all of them see all before them.

    Raises:
        ForetokenError: If a row would not see every key between its first one and itself.
    """
    rows = _ROWS.get()
    if rows is None:
        return ALL_MASK_ATTENTION_FUNCTIONS[replaced](mask_function=mask_function, **kwargs)
    if mask_function is causal_mask_function and kwargs.get("attention_mask") is None:
        return None
    # As plain decoding would come by: a row after another.
    depths = max(map(len, rows.paths))
    before = int(kwargs["kv_length"]) - int(kwargs["q_length"]) - rows.first
    plain = {
        "q_length": depths,
        "q_offset": kwargs.get("q_offset", 0) - rows.first,
        "kv_length": before + depths,
        "allow_is_causal_skip": False,
    }
    seen = sdpa_mask(mask_function=mask_function, **(kwargs | plain))
    assert seen is not None, "nothing was to be skipped"
    ends = [before + depth + 1 for depth in range(depths)]
    starts = [end - count for end, count in zip(ends, seen[0, 0].sum(-1).tolist(), strict=True)]
    places = torch.arange(before + depths, device=seen.device)
    first, last = (torch.tensor(limits, device=seen.device)[:, None] for limits in (starts, ends))
    if not torch.equal(seen[0, 0], (places >= first) & (places < last)):
        raise ModelError("The mask of this model has gaps, which are not computed row by row.")
    return Starts(starts) if any(starts) else None


def _register(names: Sequence[str]) -> None:
    for name in names:
        AttentionInterface.register(ROWS_OVER + name, partial(_attention, replaced=name))
        AttentionMaskInterface.register(ROWS_OVER + name, partial(_mask, replaced=name))


_register(REPLACED)
