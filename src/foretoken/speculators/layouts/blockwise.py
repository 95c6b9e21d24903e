"""Blockwise heads: a layout of this project, as no other is in use."""

from __future__ import annotations

from torch import nn

from foretoken.speculators.blockwise import BlockwiseConfig, BlockwiseHeads
from foretoken.speculators.folder import Json, Tensors, integer

ARCHITECTURE = "BlockwiseHeads"


def read(config: Json, tensors: Tensors, output_head: nn.Module) -> tuple[BlockwiseHeads, Tensors]:
    """The heads of a config, and the tensors of the file by the heads' own names.

    Raises:
        ForetokenError: If the config cannot be honoured.
    """
    keys = "vocab_size", "hidden_size", "num_heads", "filter_size"
    return BlockwiseHeads(BlockwiseConfig(*(integer(config, key) for key in keys)), output_head), tensors


def write(module: BlockwiseHeads) -> tuple[Json, Tensors]:
    """The config and the tensors of a file."""
    config = {
        "architectures": [ARCHITECTURE],
        "model_type": "blockwise_heads",
        "vocab_size": module.config.vocab_size,
        "hidden_size": module.config.hidden_size,
        "num_heads": module.config.num_heads,
        "filter_size": module.config.filter_size,
    }
    return config, module.state_dict()
