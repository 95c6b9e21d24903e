"""The trained heads of a model: found, checked against it, and set to know the choice of a target."""

from __future__ import annotations

import math
import os
from functools import partial
from os import PathLike
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel, TemperatureLogitsWarper

from foretoken.core.errors import ModelError
from foretoken.engines.base import FOUND
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.processors import Padded
from foretoken.engines.transformers.states import output_head
from foretoken.speculators.formats import load_rescorer, load_speculator
from foretoken.speculators.heads import Stages, TorchHeads, ready
from foretoken.speculators.module import IndependentHeads
from foretoken.speculators.noise import gumbel
from foretoken.speculators.rescorer import RecurrentRescorer, TorchRescorer

FOLDER = "speculator"  # within the folder of the model that it belongs to
RESCORER = "rescorer"  # within the folder of the heads that it was trained beside

Place = tuple[Path, torch.device, torch.dtype]  # where heads were read from, and where they are
_LOADED: WeakKeyDictionary[PreTrainedModel, dict[Place, IndependentHeads | Stages]] = WeakKeyDictionary()
_RESCORERS: WeakKeyDictionary[PreTrainedModel, dict[Place, RecurrentRescorer]] = WeakKeyDictionary()


def find_speculator(model: str, named: str | PathLike[str] | None) -> Path | None:
    """The folder of the trained heads that belong to a model.

    Args:
        model: The model's own folder or name; empty for a model that was made in memory.
        named: The folder, its own path or that within the model's folder; "auto" for ``speculator`` there, if it is
            there; "none" or None for none.

    Raises:
        ForetokenError: If the folder that was named is not there.
    """
    if named is None or named == "none":
        return None
    if not isinstance(named, str | PathLike):
        raise ModelError(f"The speculator is {named!r:.100}: give the folder of trained heads, or None.")
    if named == FOUND:
        found = Path(model or os.devnull) / FOLDER
        return found if found.is_dir() else None
    inside = Path(model or os.devnull) / named  # a name, of several that belong to a model
    for folder in (Path(named).expanduser(), inside):
        if folder.is_dir():
            return folder
    raise ModelError(f"There is no speculator folder {str(named)!r}: give a folder of trained heads, or none.")


def trained_heads(model: PreTrainedModel, folder: Path, choice: Choice) -> TorchHeads:
    """The heads of a folder, for one answer; they are read once for each place that the model is in.

    Args:
        model: Whose output head's inputs they read.
        folder: Where they are.
        choice: The target's, whose temperature and noise they know.

    Raises:
        ForetokenError: If they cannot be read, or belong to another model.
    """
    head = output_head(model)
    weight = getattr(head, "weight", None)
    if head is None or weight is None:
        raise ModelError(
            f"{type(model).__name__} does not let its output head be reached, so that nothing can be drafted from its "
            "states: leave out the speculator."
        )
    loaded = _LOADED.setdefault(model, {})
    place = folder, weight.device, model.dtype
    if place not in loaded:
        width, vocab = getattr(head, "in_features", weight.shape[-1]), getattr(head, "out_features", weight.shape[0])
        loaded[place] = ready(load_speculator(folder, width, vocab, head), weight.device, model.dtype)
    noise = None if choice.seed is None else partial(gumbel, choice.seed)
    return TorchHeads(loaded[place], temperature_of(choice), noise)


def trained_rescorer(model: PreTrainedModel, folder: Path) -> TorchRescorer:
    """The rescorer in the folder of some heads, for one answer; it is read once for each place that the model is in.

    Raises:
        ForetokenError: If it cannot be read, or belongs to another model.
    """
    weight = model.get_output_embeddings().weight
    loaded = _RESCORERS.setdefault(model, {})
    place = folder, weight.device, model.dtype
    if place not in loaded:
        loaded[place] = load_rescorer(folder, len(weight)).to(weight.device, model.dtype)
    return TorchRescorer(loaded[place])


def temperature_of(choice: Choice) -> float:
    """By what the choice divides the logits; 0 if it is greedy."""
    if choice.seed is None:
        return 0.0
    asked = choice.processors
    processors = asked.processors if isinstance(asked, Padded) else asked
    some = processors if isinstance(processors, list) else []
    return math.prod(one.temperature for one in some if isinstance(one, TemperatureLogitsWarper))
