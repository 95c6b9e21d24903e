"""MLP speculators in IBM's layout and in ArcticInference's, which differ in the config alone."""

from __future__ import annotations

from torch import nn

from foretoken.core.errors import ModelError
from foretoken.speculators.folder import Json, Tensors, drop_copies, flag, integer
from foretoken.speculators.mlp import MLPSpeculator, MLPSpeculatorConfig

IBM = "MLPSpeculatorPreTrainedModel"
ARCTIC = "ArcticMLPSpeculatorPreTrainedModel"


def read(config: Json, tensors: Tensors, output_head: nn.Module) -> tuple[MLPSpeculator, Tensors]:
    """The heads of a config, and the tensors of the file by the heads' own names.

    Raises:
        ForetokenError: If the config cannot be honoured.
    """
    top_k = config.get("top_k_tokens_per_head", [])
    if not isinstance(top_k, list) or not all(type(number) is int for number in top_k):
        raise ModelError(f"top_k_tokens_per_head in its config must be a list of integers, not {top_k!r}.")
    shape = MLPSpeculatorConfig(
        vocab_size=integer(config, "vocab_size"),
        emb_dim=integer(config, "emb_dim"),
        inner_dim=integer(config, "inner_dim"),
        n_predict=integer(config, "n_predict"),
        tie_weights=flag(config, "tie_weights"),
        scale_input=flag(config, "scale_input"),
        top_k_tokens_per_head=tuple(top_k),
        n_candidates=integer(config, "n_candidates", 5),
    )
    tensors = {name.removeprefix("speculator."): tensor for name, tensor in tensors.items()}
    if shape.tie_weights:
        kinds = (
            ("emb", 0, "weight"),
            ("proj", 1, "weight"),
            ("head", 0, "weight"),
            ("ln", 0, "weight"),
            ("ln", 0, "bias"),
        )
        for kind, first, parameter in kinds:
            copies = [f"{kind}.{stage}.{parameter}" for stage in range(first + 1, shape.n_predict)]
            drop_copies(tensors, f"{kind}.{first}.{parameter}", copies)
    return MLPSpeculator(shape), tensors


def write(architecture: str, module: MLPSpeculator) -> tuple[Json, Tensors]:
    """The config and the tensors of a file."""
    shape = module.config
    config = {
        "architectures": [architecture],
        "model_type": "mlp_speculator",
        "vocab_size": shape.vocab_size,
        "emb_dim": shape.emb_dim,
        "inner_dim": shape.inner_dim,
        "n_predict": shape.n_predict,
        "n_candidates": shape.n_candidates,
        "top_k_tokens_per_head": list(shape.top_k_tokens_per_head),  # without it vLLM takes 5, 4, 3
        "tie_weights": shape.tie_weights,
        "scale_input": shape.scale_input,
    }
    return config, {f"speculator.{name}": tensor for name, tensor in module.state_dict().items()}
