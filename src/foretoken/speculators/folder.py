"""What a speculator's folder holds: ``config.json`` and tensors in safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from foretoken.core.errors import ModelError

Json = dict[str, Any]
Tensors = dict[str, Tensor]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MEDUSA_WEIGHTS = "medusa_lm_head.safetensors"  # FasterDecoding's name
PICKLES = (".bin", ".pt", ".pth")
MOST, MOST_HEADS = 1 << 24, 64  # of a size, and of heads or layers: a damaged config makes no million layers


def read_json(path: Path) -> Json:
    """The object of a JSON file."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is no JSON file.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} is no JSON object.")
    return content


def read_tensors(folder: Path) -> Tensors:
    """All tensors of a folder, from one file or from the shards of an index."""
    if (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ModelError(f"{INDEX} has no weight_map.")
        names = sorted({Path(name).name for name in shards.values()})  # in this folder, whatever the index says
    else:
        names = [name for name in (WEIGHTS, MEDUSA_WEIGHTS) if (folder / name).exists()][:1]
    if not names:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise ModelError(
                f"its weights are in {pickles[0]}, a pickle, which could run any code; convert it to {WEIGHTS}."
            )
        raise ModelError(f"it has no {WEIGHTS}.")
    tensors: Tensors = {}
    for name in names:
        try:
            tensors |= safetensors.torch.load_file(folder / name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{name} is missing, damaged or no safetensors file ({error}).") from error
    return tensors


def integer(config: Json, key: str, default: int | None = None) -> int:
    """A size or a number of a config."""
    value = config.get(key, default)
    if value is None:
        raise ModelError(f"its config has no {key}.")
    most = MOST_HEADS if "_predict" in key or "num_" in key else MOST
    if type(value) is not int or not 0 <= value <= most:
        raise ModelError(f"its config has {value!r} as {key}, which must be an integer from 0 to {most}.")
    return value


def dimension(config: Json, key: str) -> int:
    """A size that ArcticInference writes as a string."""
    value = config.get(key)
    return integer({key: int(value)} if isinstance(value, str) and value.isascii() and value.isdigit() else config, key)


def flag(config: Json, key: str) -> bool:
    """A switch of a config, off where the key is missing."""
    value = config.get(key, False)
    if type(value) is not bool:
        raise ModelError(f"its config has {value!r} as {key}, which must be true or false.")
    return value


def drop_copies(tensors: Tensors, name: str, copies: list[str]) -> None:
    """Remove what repeats a tensor that several stages or gates share.

    Raises:
        ForetokenError: If a copy is none.
    """
    for copy in copies:
        tensor = tensors.pop(copy, None)
        if tensor is not None and name in tensors and not torch.equal(tensor, tensors[name]):
            raise ModelError(f"its config ties the weights, but {copy} differs from {name}.")
