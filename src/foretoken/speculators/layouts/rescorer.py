"""Recurrent rescorers: a layout of this project, as no other is in use."""

from __future__ import annotations

from foretoken.core.errors import ModelError
from foretoken.speculators.folder import Json, Tensors, integer
from foretoken.speculators.mlp import MLPSpeculator
from foretoken.speculators.rescorer import RecurrentRescorer, cell_shape

ARCHITECTURE = "RecurrentRescorer"


def read(config: Json, tensors: Tensors) -> tuple[RecurrentRescorer, Tensors]:
    """The rescorer of a config, and the tensors of the file by its own names.

    Raises:
        ForetokenError: If the config cannot be honoured.
    """
    if config.get("architectures") != [ARCHITECTURE]:
        raise ModelError(f"its config describes no rescorer, but {config.get('architectures')!r:.100}.")
    shape = cell_shape(integer(config, "vocab_size"), integer(config, "inner_dim"))
    return RecurrentRescorer(MLPSpeculator(shape)), tensors


def write(module: RecurrentRescorer) -> tuple[Json, Tensors]:
    """The config and the tensors of a file."""
    config = {
        "architectures": [ARCHITECTURE],
        "model_type": "recurrent_rescorer",
        "vocab_size": module.vocab_size,
        "inner_dim": module.width,
    }
    return config, module.state_dict()
