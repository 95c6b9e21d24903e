"""Speculators on disk: a folder with ``config.json`` and tensors in safetensors, in the layouts that others read.

- MLP speculators: IBM's layout (arXiv 2404.19124, ``ibm-fms`` checkpoints) and ArcticInference's.
- LSTM speculators: ArcticInference's layout.
- Medusa heads: FasterDecoding's layout and vLLM's, up to version 0.32.
- Blockwise heads: a layout of this project, as no other is in use.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from foretoken.core.errors import ForetokenError, ModelError, RequestError
from foretoken.files import writing
from foretoken.speculators.blockwise import BlockwiseConfig, BlockwiseHeads
from foretoken.speculators.lstm import GATES, LSTMSpeculator, LSTMSpeculatorConfig
from foretoken.speculators.medusa import MedusaConfig, MedusaHeads
from foretoken.speculators.mlp import MLPSpeculator, MLPSpeculatorConfig

Layout = Literal["published", "arctic", "vllm"]
Loadable = MLPSpeculator | LSTMSpeculator | BlockwiseHeads | MedusaHeads
Json = dict[str, Any]
Tensors = dict[str, Tensor]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MEDUSA_WEIGHTS = "medusa_lm_head.safetensors"  # FasterDecoding's name
PICKLES = (".bin", ".pt", ".pth")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST, MOST_HEADS = 1 << 24, 64  # of a size, and of heads or layers: a damaged config makes no million layers
IBM = "MLPSpeculatorPreTrainedModel"
ARCTIC = "ArcticMLPSpeculatorPreTrainedModel"
ARCTIC_LSTM = "ArcticLSTMSpeculatorPreTrainedModel"
ARCTIC_VARIANT = "MLPVariantSpeculatorPreTrainedModel"  # another name of it
BLOCKWISE = "BlockwiseHeads"


def load_speculator(folder: str | Path, base_width: int, base_vocab: int, output_head: nn.Module) -> Loadable:
    """The speculator of a folder, of any kind, on the CPU and in the dtype of its file.

    Args:
        folder: With ``config.json`` and ``model.safetensors``, its shards, or ``medusa_lm_head.safetensors``.
        base_width: Of the states that the base's output head reads.
        base_vocab: Tokens that the base's output head scores.
        output_head: The base's, which blockwise heads share.

    Raises:
        ForetokenError: If the folder holds no speculator, a damaged one, one in a pickle, or one for another base. The
            message names the key or tensor that is missing or has the wrong shape.
    """
    folder = Path(folder)
    try:
        config = _read_json(folder / CONFIG)
        make, rename = _kind(config)
        tensors = rename(_read_tensors(folder))
        with torch.device("meta"):
            module = make(config, tensors, output_head)
        _check_base(module, base_width, base_vocab)
        _check_tensors({name: tensor.shape for name, tensor in module.state_dict().items()}, tensors)
    except ForetokenError as error:
        raise ModelError(f"The speculator {str(folder)!r} cannot be loaded: {error}") from error
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
    module.load_state_dict(tensors, assign=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)
    return module.to(dtype).eval()


def save_speculator(
    module: nn.Module,
    folder: str | Path,
    layout: Layout = "published",
    *,
    base_model: str | None = None,
    base_architectures: tuple[str, ...] = (),
) -> None:
    """Write a speculator, in the dtype of its weights.

    Args:
        module: Of a kind that ``load_speculator`` returns.
        folder: Made if it is missing. A speculator in it is replaced.
        layout: ``published`` is IBM's of MLP speculators, FasterDecoding's of Medusa heads and this project's of
            blockwise heads. ``arctic`` is ArcticInference's of MLP and LSTM speculators. ``vllm`` is that of Medusa
            heads in vLLM 0.32.
        base_model: The base's name or folder, for the config. If None, it is left out.
        base_architectures: Architectures of the base, such as ``LlamaForCausalLM``. ArcticInference asks for them.

    Raises:
        ForetokenError: If the kind of speculator has no such layout, or the files cannot be written.
    """
    write = _WRITERS.get((type(module), layout))
    if write is None:
        raise RequestError(f"{type(module).__name__} cannot be written in the layout {layout!r}.")
    config, tensors = write(module)
    if layout == "arctic":
        if not base_architectures:
            raise RequestError("ArcticInference's layout names the base's architecture: give base_architectures.")
        config["base_model_archs"] = list(base_architectures)
    if base_model is not None:
        config["base_model_name_or_path"] = base_model
    config["torch_dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    name = MEDUSA_WEIGHTS if "medusa_num_heads" in config else WEIGHTS
    with writing(Path(folder) / name, folders=True) as file:
        file.write(safetensors.torch.save(tensors, {"format": "pt"}))
    with writing(Path(folder) / CONFIG) as file:
        file.write(json.dumps(config, indent=2).encode() + b"\n")


# Reading


def _kind(config: Json) -> tuple[Callable[[Json, Tensors, nn.Module], Loadable], Callable[[Tensors], Tensors]]:
    """What makes the module of a config, and what gives its tensors the module's names."""
    architectures = config.get("architectures") or []
    names = [architectures] if isinstance(architectures, str) else architectures
    if not isinstance(names, list) or len(names) > 1:
        raise ModelError(f"its config names several architectures: {names}.")
    name, model_type = names[0] if names else None, config.get("model_type")
    if name in (IBM, ARCTIC) or (name is None and model_type == "mlp_speculator"):
        return _make_mlp, _rename_mlp
    if name in (ARCTIC_LSTM, ARCTIC_VARIANT):
        return _make_lstm, _rename_lstm
    if name == BLOCKWISE:
        return _make_blockwise, dict
    if name == "MedusaModel" or model_type == "medusa" or "medusa_num_heads" in config:
        return _make_medusa, _rename_medusa
    raise ModelError(
        f"its config describes no MLP or LSTM speculator, no Medusa and no blockwise heads, but "
        f"{name or model_type or 'nothing that is known'!r}."
    )


def _make_mlp(config: Json, tensors: Tensors, output_head: nn.Module) -> MLPSpeculator:
    top_k = config.get("top_k_tokens_per_head", [])
    if not isinstance(top_k, list) or not all(type(number) is int for number in top_k):
        raise ModelError(f"top_k_tokens_per_head in its config must be a list of integers, not {top_k!r}.")
    shape = MLPSpeculatorConfig(
        vocab_size=_integer(config, "vocab_size"),
        emb_dim=_integer(config, "emb_dim"),
        inner_dim=_integer(config, "inner_dim"),
        n_predict=_integer(config, "n_predict"),
        tie_weights=_flag(config, "tie_weights"),
        scale_input=_flag(config, "scale_input"),
        top_k_tokens_per_head=tuple(top_k),
        n_candidates=_integer(config, "n_candidates", 5),
    )
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
            _drop_copies(tensors, f"{kind}.{first}.{parameter}", copies)
    return MLPSpeculator(shape)


def _rename_mlp(tensors: Tensors) -> Tensors:
    return {name.removeprefix("speculator."): tensor for name, tensor in tensors.items()}


def _drop_copies(tensors: Tensors, name: str, copies: list[str]) -> None:
    """Remove what repeats a tensor that several stages or gates share.

    Raises:
        ForetokenError: If a copy is none.
    """
    for copy in copies:
        tensor = tensors.pop(copy, None)
        if tensor is not None and name in tensors and not torch.equal(tensor, tensors[name]):
            raise ModelError(f"its config ties the weights, but {copy} differs from {name}.")


def _make_lstm(config: Json, tensors: Tensors, output_head: nn.Module) -> LSTMSpeculator:
    for key, only in (("method", "sum_lstm"), ("tie_weights", True), ("tie_lstm_embs", True)):
        if config.get(key) != only:
            raise ModelError(f"{key} {config.get(key)!r} in its config is not supported, only {only!r}.")
    inner, *others = (_dimension(config, key) for key in ("inner_dim", "proj_dim", "emb_dim"))
    if others != [inner, inner]:
        raise ModelError(f"inner_dim, proj_dim and emb_dim in its config must be equal, not {[inner, *others]}.")
    shape = LSTMSpeculatorConfig(
        vocab_size=_integer(config, "vocab_size"),
        input_hidden_dim=_integer(config, "input_hidden_dim"),
        inner_dim=inner,
        n_predict=_integer(config, "n_predict"),
        scale_input=_flag(config, "scale_input"),
    )
    _drop_copies(tensors, "head.weight", [f"head.{stage}.weight" for stage in range(1, shape.n_predict)])
    _drop_copies(tensors, "emb.weight", [f"{gate}_emb.0.weight" for gate in GATES[1:]])
    return LSTMSpeculator(shape)


def _rename_lstm(tensors: Tensors) -> Tensors:
    """One tensor of the four gates' projections of a stage, and the module's names."""
    tensors = _rename_mlp(tensors)
    for stage in (0, 1):
        names = [f"{gate}_proj.{stage}.weight" for gate in GATES]
        gates = [tensors[name] for name in names if name in tensors]
        if len(gates) == len(GATES) and len({gate.shape for gate in gates}) == 1:
            tensors = {name: tensor for name, tensor in tensors.items() if name not in names}
            tensors[f"proj.{stage}.weight"] = torch.cat(gates)
    return {_LSTM_NAMES.get(name, name): tensor for name, tensor in tensors.items()}


_LSTM_NAMES = {
    "forget_emb.0.weight": "emb.weight",
    "head.0.weight": "head.weight",
    "cell_ln.0.weight": "cell_ln.weight",
    "cell_ln.0.bias": "cell_ln.bias",
    "state_ln.0.weight": "state_ln.weight",
    "state_ln.0.bias": "state_ln.bias",
}


def _make_blockwise(config: Json, tensors: Tensors, output_head: nn.Module) -> BlockwiseHeads:
    keys = "vocab_size", "hidden_size", "num_heads", "filter_size"
    return BlockwiseHeads(BlockwiseConfig(*(_integer(config, key) for key in keys)), output_head)


def _make_medusa(config: Json, tensors: Tensors, output_head: nn.Module) -> MedusaHeads:
    # vLLM takes every key of this kind: num_heads, medusa_num_heads; num_hidden_layers, medusa_num_layers.
    heads = next((key for key in config if "num" in key and "heads" in key), "num_heads")
    layers = next((key for key in config if "num" in key and "layers" in key), "num_hidden_layers")
    output = tensors.get("lm_heads.0.weight")
    if output is None or output.ndim != 2:
        raise ModelError("it has no tensor for the first head's output projection, lm_heads.0.weight or 0.1.weight.")
    vocab_size, width = output.shape  # FasterDecoding's config has neither
    vocab_size, width = _integer(config, "vocab_size", vocab_size), _integer(config, "hidden_size", width)
    for key, honoured in (("truncated_vocab_size", (None, vocab_size)), ("logit_scale", (None, 1, 1.0))):
        if config.get(key) not in honoured:
            raise ModelError(f"{key} {config[key]!r} in its config is not supported.")
    return MedusaHeads(
        MedusaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            medusa_num_heads=_integer(config, heads),
            medusa_num_layers=_integer(config, layers),
            fc_bias=any(name.startswith("blocks.") and name.endswith(".bias") for name in tensors),
            shared_output=_flag(config, "original_lm_head"),
        )
    )


def _rename_medusa(tensors: Tensors) -> Tensors:
    """Names of either layout to those of the module, which are vLLM's."""
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("medusa_heads.")
        name = re.sub(r"^(\d+)\.(\d+)\.linear\.", r"blocks.\1.layers.\2.", name)
        name = re.sub(r"^(\d+)\.\d+\.weight$", r"lm_heads.\1.weight", name)
        renamed["lm_heads.0.weight" if name == "lm_head.weight" else name] = tensor
    return renamed


def _check_base(module: Loadable, base_width: int, base_vocab: int) -> None:
    for what, own, others in (
        ("states of width", module.base_width, base_width),
        ("a vocabulary of size", module.vocab_size, base_vocab),
    ):
        if own != others:
            raise ModelError(f"it is for a base with {what} {own}, and the base's is {others}; use one trained for it.")


def _check_tensors(expected: Mapping[str, torch.Size], tensors: Tensors) -> None:
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ModelError(f"it has no tensor for {_some(missing)}.")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise ModelError(f"it has tensors that its config has no place for: {_some(unknown)}.")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise ModelError(f"its tensor {name} has the shape {list(tensor.shape)} instead of {list(shape)}.")
        if tensor.dtype not in DTYPES:
            raise ModelError(f"its tensor {name} has the dtype {tensor.dtype}, which is not supported.")
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"its tensor {name} has values that are no finite numbers: the training failed.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _integer(config: Json, key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if value is None:
        raise ModelError(f"its config has no {key}.")
    most = MOST_HEADS if "_predict" in key or "num_" in key else MOST
    if type(value) is not int or not 0 <= value <= most:
        raise ModelError(f"its config has {value!r} as {key}, which must be an integer from 0 to {most}.")
    return value


def _dimension(config: Json, key: str) -> int:
    """A size that ArcticInference writes as a string."""
    value = config.get(key)
    return _integer(
        {key: int(value)} if isinstance(value, str) and value.isascii() and value.isdigit() else config, key
    )


def _flag(config: Json, key: str) -> bool:
    value = config.get(key, False)
    if type(value) is not bool:
        raise ModelError(f"its config has {value!r} as {key}, which must be true or false.")
    return value


def _read_json(path: Path) -> Json:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise ModelError(f"{path.name} is no JSON file.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} is no JSON object.")
    return content


def _read_tensors(folder: Path) -> Tensors:
    """All tensors of a folder, from one file or from the shards of an index."""
    if (folder / INDEX).exists():
        shards = _read_json(folder / INDEX).get("weight_map")
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


# Writing


def _write_mlp(architecture: str, module: MLPSpeculator) -> tuple[Json, Tensors]:
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


def _write_lstm(module: LSTMSpeculator) -> tuple[Json, Tensors]:
    shape, state = module.config, module.state_dict()
    config = {
        "architectures": [ARCTIC_LSTM],
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
    tensors = {name: state[own] for name, own in _LSTM_NAMES.items()}
    # ArcticInference asks for every gate's, also of what the gates share.
    tensors |= {f"{gate}_emb.0.weight": state["emb.weight"].clone() for gate in GATES[1:]}
    for stage in (0, 1):
        gates = state[f"proj.{stage}.weight"].chunk(len(GATES))
        tensors |= {f"{gate}_proj.{stage}.weight": part.clone() for gate, part in zip(GATES, gates, strict=True)}
    return config, tensors


def _write_blockwise(module: BlockwiseHeads) -> tuple[Json, Tensors]:
    config = {
        "architectures": [BLOCKWISE],
        "model_type": "blockwise_heads",
        "vocab_size": module.config.vocab_size,
        "hidden_size": module.config.hidden_size,
        "num_heads": module.config.num_heads,
        "filter_size": module.config.filter_size,
    }
    return config, module.state_dict()


def _write_medusa(module: MedusaHeads) -> tuple[Json, Tensors]:
    """FasterDecoding's layout: every head has biases and an output projection of its own."""
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


def _write_medusa_for_vllm(module: MedusaHeads) -> tuple[Json, Tensors]:
    shape = module.config
    config = {
        "architectures": ["MedusaModel"],
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


_WRITERS: dict[tuple[type, Layout], Callable[[Any], tuple[Json, Tensors]]] = {
    (MLPSpeculator, "published"): functools.partial(_write_mlp, IBM),
    (MLPSpeculator, "arctic"): functools.partial(_write_mlp, ARCTIC),
    (LSTMSpeculator, "arctic"): _write_lstm,
    (BlockwiseHeads, "published"): _write_blockwise,
    (MedusaHeads, "published"): _write_medusa,
    (MedusaHeads, "vllm"): _write_medusa_for_vllm,
}
