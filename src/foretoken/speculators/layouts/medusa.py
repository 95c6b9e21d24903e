"""Medusa heads in FasterDecoding's layout and in vLLM's, up to version 0.32."""

from __future__ import annotations

import re

from torch import nn

from foretoken.core.errors import ModelError
from foretoken.speculators.folder import Json, Tensors, flag, integer
from foretoken.speculators.medusa import MedusaConfig, MedusaHeads

ARCHITECTURE = "MedusaModel"


def read(config: Json, tensors: Tensors, output_head: nn.Module) -> tuple[MedusaHeads, Tensors]:
    """The heads of a config, and the tensors of the file by the heads' own names.

    Raises:
        ForetokenError: If the config cannot be honoured.
    """
    # vLLM takes FasterDecoding's keys, too.
    heads = "medusa_num_heads" if "medusa_num_heads" in config else "num_heads"
    layers = "medusa_num_layers" if "medusa_num_layers" in config else "num_hidden_layers"
    tensors = _renamed(tensors)
    output = tensors.get("lm_heads.0.weight")
    if output is None or output.ndim != 2:
        raise ModelError("it has no tensor for the first head's output projection, lm_heads.0.weight or 0.1.weight.")
    vocab_size, width = output.shape  # FasterDecoding's config has neither
    vocab_size, width = integer(config, "vocab_size", vocab_size), integer(config, "hidden_size", width)
    for key, honoured in (("truncated_vocab_size", (None, vocab_size)), ("logit_scale", (None, 1, 1.0))):
        if config.get(key) not in honoured:
            raise ModelError(f"{key} {config[key]!r} in its config is not supported.")
    shape = MedusaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        medusa_num_heads=integer(config, heads),
        medusa_num_layers=integer(config, layers),
        fc_bias=any(name.startswith("blocks.") and name.endswith(".bias") for name in tensors),
        shared_output=flag(config, "original_lm_head"),
    )
    return MedusaHeads(shape), tensors


def _renamed(tensors: Tensors) -> Tensors:
    """Names of either layout to those of the module, which are vLLM's."""
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("medusa_heads.")
        name = re.sub(r"^(\d+)\.(\d+)\.linear\.", r"blocks.\1.layers.\2.", name)
        name = re.sub(r"^(\d+)\.\d+\.weight$", r"lm_heads.\1.weight", name)
        renamed["lm_heads.0.weight" if name == "lm_head.weight" else name] = tensor
    return renamed


def write(module: MedusaHeads) -> tuple[Json, Tensors]:
    """The config and the tensors of a file in FasterDecoding's layout.

    There every head has biases and an output projection of its own.
    """
    shape, state = module.config, module.state_dict()
    tensors = {}
    for i in range(shape.medusa_num_heads):
        for j in range(shape.medusa_num_layers):
            weight = state[f"blocks.{i}.layers.{j}.weight"]
            tensors[f"{i}.{j}.linear.weight"] = weight
            tensors[f"{i}.{j}.linear.bias"] = state.get(f"blocks.{i}.layers.{j}.bias", weight.new_zeros(len(weight)))
        output = state[f"lm_heads.{0 if shape.shared_output else i}.weight"]
        tensors[f"{i}.{shape.medusa_num_layers}.weight"] = output.clone() if shape.shared_output else output
    return {"medusa_num_heads": shape.medusa_num_heads, "medusa_num_layers": shape.medusa_num_layers}, tensors


def write_for_vllm(module: MedusaHeads) -> tuple[Json, Tensors]:
    """The config and the tensors of a file in vLLM's layout."""
    shape = module.config
    config = {
        "architectures": [ARCHITECTURE],
        "model_type": "medusa",
        "vocab_size": shape.vocab_size,
        "truncated_vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_heads": shape.medusa_num_heads,
        "num_hidden_layers": shape.medusa_num_layers,
        "medusa_fc_bias": shape.fc_bias,
        "original_lm_head": shape.shared_output,
    }
    return config, module.state_dict()
