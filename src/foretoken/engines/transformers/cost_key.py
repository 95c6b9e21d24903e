"""What the cost of a model's forwards depends on, besides the machine."""

from __future__ import annotations

import hashlib
import json
from weakref import WeakKeyDictionary

import torch
import transformers
from transformers import PreTrainedModel

from foretoken.engines.transformers.attention import implementation
from foretoken.engines.transformers.inputs import input_device

WRITTEN = ("architectures", "dtype", "transformers_version")  # into a config when its model is saved
_SHAPES: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()  # a config takes milliseconds to write


def cost_key(model: PreTrainedModel, exact: bool = False) -> str:
    """The model's shape, dtype and attention, its device, the threads, and the versions of the libraries.

    Args:
        model: The model.
        exact: Whether its rows are kept apart, which has costs of its own.
    """
    device = input_device(model)
    gpu = f" {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return " ".join(
        [
            type(model).__name__,
            _SHAPES.get(model) or _SHAPES.setdefault(model, _shape(model)),
            str(model.dtype),
            f"{implementation(model)}{' row by row' if exact else ''}",
            f"{device.type}{gpu} threads={torch.get_num_threads()}",
            f"torch={torch.__version__} transformers={transformers.__version__}",
        ]
    )


def _shape(model: PreTrainedModel) -> str:
    """A digest of the config and of the weights' types, which quantization changes."""
    said = {name: value for name, value in model.config.to_diff_dict().items() if name not in WRITTEN}
    config = json.dumps(said, sort_keys=True, default=str)
    dtypes = sorted({str(parameter.dtype) for parameter in model.parameters()})
    return hashlib.sha256(f"{config} {dtypes}".encode()).hexdigest()[:16]
