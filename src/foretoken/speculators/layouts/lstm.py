"""LSTM speculators in ArcticInference's layout, which has a tensor for each gate."""

from __future__ import annotations

import torch
from torch import nn

from foretoken.core.errors import ModelError
from foretoken.speculators.folder import Json, Tensors, dimension, drop_copies, flag, integer
from foretoken.speculators.lstm import GATES, LSTMSpeculator, LSTMSpeculatorConfig

ARCHITECTURE = "ArcticLSTMSpeculatorPreTrainedModel"
VARIANT = "MLPVariantSpeculatorPreTrainedModel"  # another name of it
NAMES = {
    "forget_emb.0.weight": "emb.weight",
    "head.0.weight": "head.weight",
    "cell_ln.0.weight": "cell_ln.weight",
    "cell_ln.0.bias": "cell_ln.bias",
    "state_ln.0.weight": "state_ln.weight",
    "state_ln.0.bias": "state_ln.bias",
}


def read(config: Json, tensors: Tensors, output_head: nn.Module) -> tuple[LSTMSpeculator, Tensors]:
    """The heads of a config, and the tensors of the file by the heads' own names.

    Raises:
        ForetokenError: If the config cannot be honoured.
    """
    for key, only in (("method", "sum_lstm"), ("tie_weights", True), ("tie_lstm_embs", True)):
        if config.get(key) != only:
            raise ModelError(f"{key} {config.get(key)!r} in its config is not supported, only {only!r}.")
    inner, *others = (dimension(config, key) for key in ("inner_dim", "proj_dim", "emb_dim"))
    if others != [inner, inner]:
        raise ModelError(f"inner_dim, proj_dim and emb_dim in its config must be equal, not {[inner, *others]}.")
    shape = LSTMSpeculatorConfig(
        vocab_size=integer(config, "vocab_size"),
        input_hidden_dim=integer(config, "input_hidden_dim"),
        inner_dim=inner,
        n_predict=integer(config, "n_predict"),
        scale_input=flag(config, "scale_input"),
    )
    tensors = _renamed(tensors)
    drop_copies(tensors, "head.weight", [f"head.{stage}.weight" for stage in range(1, shape.n_predict)])
    drop_copies(tensors, "emb.weight", [f"{gate}_emb.0.weight" for gate in GATES[1:]])
    return LSTMSpeculator(shape), tensors


def _renamed(tensors: Tensors) -> Tensors:
    """The names of a file to those of the module, which has one projection of all gates.

    Raises:
        ForetokenError: If a gate has no projection, or one of another shape than the other gates.
    """
    tensors = {name.removeprefix("speculator."): tensor for name, tensor in tensors.items()}
    renamed = {NAMES.get(name, name): tensor for name, tensor in tensors.items() if "_proj." not in name}
    for stage in (0, 1):
        names = [f"{gate}_proj.{stage}.weight" for gate in GATES]
        for name in names:
            if name not in tensors:
                raise ModelError(f"it has no tensor for {name}.")
            if tensors[name].ndim != 2 or tensors[name].shape != tensors[names[0]].shape:
                raise ModelError(
                    f"its tensor {name} has the shape {list(tensors[name].shape)}, unlike the other gates'."
                )
        renamed[f"proj.{stage}.weight"] = torch.cat([tensors[name] for name in names])
    return renamed


def write(module: LSTMSpeculator) -> tuple[Json, Tensors]:
    """The config and the tensors of a file."""
    shape, state = module.config, module.state_dict()
    config = {
        "architectures": [ARCHITECTURE],
        "model_type": "mlp_speculator",
        "method": "sum_lstm",
        "vocab_size": shape.vocab_size,
        "input_hidden_dim": shape.input_hidden_dim,
        **dict.fromkeys(("inner_dim", "proj_dim", "emb_dim"), str(shape.inner_dim)),
        "n_predict": shape.n_predict,
        "tie_weights": True,
        "tie_lstm_embs": True,
        "scale_input": shape.scale_input,
        "top_k_tokens_per_head": [1] * shape.n_predict,  # ArcticInference drafts a chain
    }
    tensors = {name: state[own] for name, own in NAMES.items()}
    # ArcticInference asks for every gate's, also of what the gates share.
    tensors |= {f"{gate}_emb.0.weight": state["emb.weight"].clone() for gate in GATES[1:]}
    for stage in (0, 1):
        gates = state[f"proj.{stage}.weight"].chunk(len(GATES))
        tensors |= {f"{gate}_proj.{stage}.weight": part.clone() for gate, part in zip(GATES, gates, strict=True)}
    return config, tensors
