"""Speculators on disk: a folder with ``config.json`` and tensors in safetensors, in the layouts that others read.

- MLP speculators: IBM's layout (arXiv 2404.19124, ``ibm-fms`` checkpoints) and ArcticInference's.
- LSTM speculators: ArcticInference's layout.
- Medusa heads: FasterDecoding's layout and vLLM's, up to version 0.32.
- Blockwise heads, and rescorers beside heads: layouts of this project, as no others are in use.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
from torch import nn

from foretoken.core.errors import ForetokenError, ModelError, RequestError
from foretoken.files import writing
from foretoken.speculators.blockwise import BlockwiseHeads
from foretoken.speculators.folder import CONFIG, INDEX, MEDUSA_WEIGHTS, WEIGHTS, Json, Tensors, read_json, read_tensors
from foretoken.speculators.layouts import blockwise, lstm, medusa, mlp, rescorer
from foretoken.speculators.lstm import LSTMSpeculator
from foretoken.speculators.medusa import MedusaHeads
from foretoken.speculators.mlp import MLPSpeculator
from foretoken.speculators.rescorer import RecurrentRescorer

Layout = Literal["published", "arctic", "vllm"]
M = TypeVar("M", bound=nn.Module)
Loadable = MLPSpeculator | LSTMSpeculator | BlockwiseHeads | MedusaHeads

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WRITERS: dict[tuple[type, Layout], Callable[[Any], tuple[Json, Tensors]]] = {
    (MLPSpeculator, "published"): functools.partial(mlp.write, mlp.IBM),
    (MLPSpeculator, "arctic"): functools.partial(mlp.write, mlp.ARCTIC),
    (LSTMSpeculator, "arctic"): lstm.write,
    (BlockwiseHeads, "published"): blockwise.write,
    (MedusaHeads, "published"): medusa.write,
    (MedusaHeads, "vllm"): medusa.write_for_vllm,
    (RecurrentRescorer, "published"): rescorer.write,
}


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

    def read(config: Json, tensors: Tensors) -> tuple[Loadable, Tensors]:
        module, tensors = _reader(config)(config, tensors, output_head)
        _check_base(module, base_width, base_vocab)
        return module, tensors

    return _load(Path(folder), "speculator", read)


def load_rescorer(folder: str | Path, base_vocab: int) -> RecurrentRescorer:
    """The rescorer of a folder, on the CPU and in the dtype of its file.

    Args:
        folder: With ``config.json`` and ``model.safetensors``.
        base_vocab: Tokens that the base's output head scores.

    Raises:
        ForetokenError: If the folder holds no rescorer, a damaged one, one in a pickle, or one for another base.
    """

    def read(config: Json, tensors: Tensors) -> tuple[RecurrentRescorer, Tensors]:
        module, tensors = rescorer.read(config, tensors)
        _check_size("a vocabulary of size", module.vocab_size, base_vocab)
        return module, tensors

    return _load(Path(folder), "rescorer", read)


def _load(folder: Path, what: str, read: Callable[[Json, Tensors], tuple[M, Tensors]]) -> M:
    """The module of a folder, with the weights of its file.

    Raises:
        ForetokenError: If it cannot be loaded, with ``what`` it was to be.
    """
    try:
        config, tensors = read_json(folder / CONFIG), read_tensors(folder)
        with torch.device("meta"):  # the weights are those of the file
            module, tensors = read(config, tensors)
        _check_tensors({name: tensor.shape for name, tensor in module.state_dict().items()}, tensors)
    except ForetokenError as error:
        raise ModelError(f"The {what} {str(folder)!r} cannot be loaded: {error}") from error
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
        module: Of a kind that ``load_speculator`` or ``load_rescorer`` returns.
        folder: Made if it is missing. A speculator in it is replaced.
        layout: ``published`` is IBM's of MLP speculators, FasterDecoding's of Medusa heads and this project's of
            blockwise heads. ``arctic`` is ArcticInference's of MLP and LSTM speculators. ``vllm`` is that of Medusa
            heads in vLLM 0.32.
        base_model: The base's name or folder, for the config. If None, it is left out.
        base_architectures: Architectures of the base, such as ``LlamaForCausalLM``. ArcticInference asks for them.

    Raises:
        ForetokenError: If the kind of speculator has no such layout, or the files cannot be written.
    """
    write = WRITERS.get((type(module), layout))
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
    for other in {WEIGHTS, INDEX, MEDUSA_WEIGHTS} - {name}:  # of a speculator that stood here
        (Path(folder) / other).unlink(missing_ok=True)
    with writing(Path(folder) / CONFIG) as file:
        file.write(json.dumps(config, indent=2).encode() + b"\n")


def _reader(config: Json) -> Callable[[Json, Tensors, nn.Module], tuple[Loadable, Tensors]]:
    """What reads the layout that a config is of."""
    architectures = config.get("architectures") or []
    names = [architectures] if isinstance(architectures, str) else architectures
    if not isinstance(names, list) or len(names) > 1:
        raise ModelError(f"its config names several architectures: {names}.")
    name, model_type = names[0] if names else None, config.get("model_type")
    if name in (mlp.IBM, mlp.ARCTIC) or (name is None and model_type == "mlp_speculator"):
        return mlp.read
    if name in (lstm.ARCHITECTURE, lstm.VARIANT):
        return lstm.read
    if name == blockwise.ARCHITECTURE:
        return blockwise.read
    if name == medusa.ARCHITECTURE or model_type == "medusa" or "medusa_num_heads" in config:
        return medusa.read
    raise ModelError(
        f"its config describes no MLP or LSTM speculator, no Medusa and no blockwise heads, but "
        f"{name or model_type or 'nothing that is known'!r}."
    )


def _check_base(module: Loadable, base_width: int, base_vocab: int) -> None:
    _check_size("states of width", module.base_width, base_width)
    _check_size("a vocabulary of size", module.vocab_size, base_vocab)


def _check_size(what: str, own: int, others: int) -> None:
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
            raise ModelError(f"its tensor {name} has values that are not finite numbers, as after a failed training.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
