"""The scan with which a recurrent layer reads several rows: whether it says what single rows say, and at what cost.

A recurrent layer has two forms: a step for one row, by which plain decoding goes, and a scan for several, which reads
the prompt and every draft. A draft may be scored only by a scan that goes on from the state as steps do. Some do not:
those of Jamba and of the first Mamba begin with an empty state, and others bound the time step where a step does not.
"""

from __future__ import annotations

import copy
import logging
import sys
from functools import partial
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foretoken.engines.transformers.inputs import input_device
from foretoken.engines.transformers.recurrent import RecurrentCache, refusal

CHUNK = 16  # rows; models pad every scan to a multiple of 64 to 256, which a prompt fills and a draft does not
NO_LIMIT = (0.0, float("inf"))
DELTA_RULE = "torch_chunk_gated_delta_rule"
NUM_READ, NUM_ROWS = 4, 2  # tokens of the test: before the rows, and the rows
WEIGHT = 100.0  # of the state in the test, so that it shows where it is forgotten
MOST_APART = 1e-3  # of the largest number; a scan that forgets the state is apart by far more
MOST_APART_IN_HALF = 0.05
HALF = (torch.float16, torch.bfloat16)
logger = logging.getLogger("foretoken")

_CONTINUES: WeakKeyDictionary[PreTrainedModel, dict[tuple[torch.dtype, str], bool]] = WeakKeyDictionary()


def scans_of_drafts(model: PreTrainedModel) -> PreTrainedModel | None:
    """The model with scans made for the rows of a draft; the weights are shared, and the model is left as it is.

    They do not bound the time step, since steps do not. On a CPU they take few rows together: a scan of two rows over
    256 takes as long as several forwards.

    Raises:
        ForetokenError: If it keeps its states elsewhere than in a cache.

    Returns:
        None if its scan does not go on from a state as its steps do, of which a warning tells.
    """
    scans = _with_scans_of_drafts(model, short=model.device.type == "cpu")
    known = _CONTINUES.setdefault(model, {})
    key = model.dtype, model.device.type
    if key not in known:
        known[key] = goes_on_as_steps_do(model, scans) and not any(map(_bounds_time_steps, scans.modules()))
        if not known[key]:
            logger.warning(
                "The layers of %s read several rows otherwise than one after the other, so that a draft would change "
                "the text: nothing is drafted with it.",
                type(model).__name__,
            )
    return scans if known[key] else None


@torch.inference_mode()
def goes_on_as_steps_do(model: PreTrainedModel, scans: PreTrainedModel) -> bool:
    """Whether a forward of some rows and as many forwards of one row lead to the same states and logits.

    The states are those of the first recurrent layer. In half precision a choice of experts may part what comes after.

    Args:
        model: For the forwards of one row.
        scans: For the other.

    Raises:
        ForetokenError: If the model keeps its states elsewhere than in the cache.
    """
    cache = RecurrentCache(model)
    vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
    tokens = torch.arange(NUM_READ + NUM_ROWS, device=input_device(model))[None] % vocab_size
    try:
        _read(model, cache, tokens[:, :NUM_READ])
        reads_into_cache = cache.num_cached == NUM_READ and bool(cache.first_states())
    except (AttributeError, TypeError, ValueError):  # of a model that takes no cache but its own
        reads_into_cache = False
    if not reads_into_cache:
        raise refusal(model)
    cache.weigh_states(WEIGHT)
    mark = cache.mark(NUM_ROWS)
    at_once = [_read(scans, cache, tokens[:, NUM_READ:])]
    states = cache.first_states()
    cache.go_back(mark)
    one_by_one = [torch.cat([_read(model, cache, tokens[:, i : i + 1]) for i in range(NUM_READ, tokens.shape[1])])]
    if model.dtype in HALF:
        at_once = one_by_one = []
    pairs = zip([*at_once, *states], [*one_by_one, *cache.first_states()], strict=True)
    most_apart = MOST_APART_IN_HALF if model.dtype in HALF else MOST_APART
    return all(float((one - other).abs().max()) <= most_apart * float(other.abs().max()) for one, other in pairs)


def _read(model: PreTrainedModel, cache: RecurrentCache, tokens: Tensor) -> Tensor:
    """The logits of all rows, [rows, vocab]."""
    extra: dict[str, Any] = {cache.argument: cache.states, "use_cache": True, "return_dict": True}
    if "position_ids" in signature(model.forward).parameters:
        start = cache.num_cached
        extra["position_ids"] = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
    logits: Tensor = model(input_ids=tokens, **extra).logits[0]
    cache.has_read(tokens.shape[1])
    return logits


def _bounds_time_steps(module: nn.Module) -> bool:
    """Whether a layer's scan does; its step never does."""
    return tuple(vars(module).get("time_step_limit") or NO_LIMIT) != NO_LIMIT


def _with_scans_of_drafts(module: Any, short: bool) -> Any:
    """The module, or a copy with other scans in it and all else shared.

    What has a forward put on the object, as accelerate does, calls the object that it was put on: it stays as it is.
    """
    if "forward" in vars(module):
        return module
    made = {name: _with_scans_of_drafts(part, short) for name, part in module.named_children()}
    limits, chunk = "time_step_limit" in vars(module), "chunk_size" in vars(module)
    delta_rule = "DeltaNet" in type(module).__name__ and hasattr(sys.modules[type(module).__module__], DELTA_RULE)
    if not (limits and chunk) and not delta_rule and all(made[name] is part for name, part in module.named_children()):
        return module
    clone = copy.copy(module)
    clone._modules = dict(module._modules) | made
    if limits and chunk:
        clone.time_step_limit = NO_LIMIT
        clone.chunk_size = CHUNK if short else module.chunk_size
    elif delta_rule and short:
        clone.forward = partial(type(module).forward, clone, chunk_size=CHUNK)
    return clone
