"""Models and tokenizers from a folder, the hub or the package, with a clear sentence where that fails.

A model's own code runs only if the caller says so. Transformers asks on standard input if nobody has decided, so
here it is always decided.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    dynamic_module_utils,
)
from transformers.utils.import_utils import is_peft_available

from foretoken.core.errors import ModelError

TINY = Path(__file__).parent.parent.parent / "models" / "tiny"
DTYPES = {
    "auto": "auto",
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
MAX_WEIGHTS_PER_BYTE = 16  # a weight of two bits takes a quarter of a byte
MAX_LAYERS = 1000
logger = logging.getLogger("foretoken")
_asking = threading.RLock()  # code that a caller trusts may load a model, too


def load_model(
    name: str, dtype: str = "auto", device: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The causal language model of a folder, of the hub, or "tiny"; see ``foretoken.load``.

    Raises:
        ForetokenError: If it cannot be loaded.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ModelError(f"There is no dtype {dtype!r} here: choose one of {', '.join(DTYPES)}.")
    path, place = resolve(name), find_device(device)
    with _nobody_asked(trust_remote_code):
        config = load_config(name, trust_remote_code)
        if not _continues_text(config):
            raise ModelError(
                f"The model {name!r} ({config.model_type}) is not a causal language model: "
                "choose one that continues text."
            )
        _check_folder(path, config)
        # A broken folder can raise anything, from OSError to a safetensors or a JSON error: all is the user's input.
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=DTYPES[dtype],
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with a sentence that says which
                trust_remote_code=trust_remote_code,
            )
            model, info = loaded
            model.to(place)
        except Exception as error:
            raise ModelError(f"The weights of {name!r} could not be loaded: {reason(error)}") from error
    _check_weights(name, info)
    if "generate" in vars(model):  # a folder's custom_generate/generate.py
        raise ModelError(f"The model {name!r} brings its own generate, which is not drafted for: use it as it is.")
    if place.type == "cpu":
        _warn_of_slow(model.dtype)
    return cast(PreTrainedModel, model)


def load_config(name: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """What a model says of its shape.

    Raises:
        ForetokenError: If it cannot be read.
    """
    path = resolve(name)
    with _nobody_asked(trust_remote_code):
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise ModelError(f"The model {name!r} could not be read: {reason(error)}") from error
    return config


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model.

    Raises:
        ForetokenError: If it is missing or cannot be read.
    """
    refused = f"The model {name!r} has no tokenizer that can be read: put its tokenizer.json beside it."
    path = resolve(name)
    with _nobody_asked(trust_remote_code):
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                path, trust_remote_code=trust_remote_code
            )
            vocabulary = set(tokenizer.get_vocab().values())
            ordinary = vocabulary.difference(tokenizer.all_special_ids, tokenizer.added_tokens_decoder)
        except BaseException as error:
            if not is_fault(error):
                raise
            raise ModelError(f"{refused} {reason(error)}") from error
    # Where the files are missing, transformers makes a tokenizer of special tokens, and a marked space at most.
    if len(ordinary) < 2:
        raise ModelError(refused)
    return tokenizer


def resolve(name: str) -> str:
    """The path of a local model, or the name as it is for the hub.

    Raises:
        ForetokenError: If a path was meant and nothing is there.
    """
    if not isinstance(name, str | os.PathLike):
        raise ModelError(f"The model is {name!r}: give a folder with a config.json, or a hub name.")
    name = os.fspath(name)
    if name == "tiny":
        return str(TINY)
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        is_model, is_adapted = (os.path.isfile(os.path.join(path, f"{name}config.json")) for name in ("", "adapter_"))
        if is_adapted and not (is_model and is_peft_available()):
            raise ModelError(f"The folder {name!r} holds an adapter: merge it into its model with peft, save that.")
        if not is_model:
            raise ModelError(f"The folder {name!r} holds no model: it has no config.json.")
        return path
    if os.path.exists(path) or os.path.isabs(path) or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"There is no model folder {name!r}: give a folder with a config.json, or a hub name.")
    return name


def find_device(name: str | None) -> torch.device:
    """The device of this name. If None, a GPU if there is one.

    Raises:
        ForetokenError: If the name means nothing here, or no numbers can be kept there.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device that is named well may not be there, or hold no numbers
    except Exception as error:
        raise ModelError(
            f'The device {name!r} cannot be used: give "cpu", or "cuda" where there is a GPU. {reason(error)}'
        ) from error
    return device


def is_fault(error: BaseException) -> bool:
    """Whether an error is a failure and not a request to stop: the panics of tokenizers are no ``Exception``."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def reason(error: BaseException) -> str:
    """What went wrong, on one line, not too long, and without what would move a terminal's cursor."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    if "trust_remote_code" in text:
        return (
            "It needs code that comes with it, which runs only if you say so: read that code, then call "
            "foretoken.load(..., trust_remote_code=True)."
        )
    return text[:300] or type(error).__name__


def _check_folder(path: str, config: PreTrainedConfig) -> None:
    """Refuse a folder that would take far more time or memory than its files are worth, or lose its own settings.

    Raises:
        ForetokenError: If so.
    """
    for layers in _nums_layers(config):
        if not isinstance(layers, int) or not 0 < layers <= MAX_LAYERS:
            raise ModelError(f"The config.json of {path!r} asks for {layers} layers, so it is damaged.")
    if not os.path.isdir(path):
        return
    if os.path.lexists(os.path.join(path, "generation_config.json")):
        try:
            GenerationConfig.from_pretrained(path)  # where it cannot be read, transformers goes on without
        except Exception as error:
            raise ModelError(f"The generation_config.json of {path!r} cannot be read: {reason(error)}") from error
    num_bytes = sum(file.stat().st_size for file in Path(path).iterdir() if file.suffix in WEIGHTS and file.is_file())
    num_weights = _num_weights(config)
    if num_bytes and num_weights > MAX_WEIGHTS_PER_BYTE * num_bytes:
        raise ModelError(
            f"The config.json of {path!r} asks for {num_weights:,} weights, and its files hold {num_bytes:,} bytes: "
            "one of them is damaged."
        )


def _nums_layers(config: PreTrainedConfig) -> Iterator[object]:
    """How many layers a model and its parts have, where a config says it."""
    if getattr(config, "num_hidden_layers", None) is not None:
        yield config.num_hidden_layers
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            yield from _nums_layers(part)


def _num_weights(config: PreTrainedConfig) -> int:
    """How many numbers the model of a config consists of; 0 where it cannot be made without weights."""
    try:
        with torch.device("meta"):
            return int(AutoModelForCausalLM.from_config(config, trust_remote_code=False).num_parameters())
    except Exception:  # whatever is wrong, it shows again where the weights are loaded
        return 0


def _check_weights(name: str, info: dict[str, Any]) -> None:
    """Refuse weights that are not those of the config.

    Raises:
        ForetokenError: If tensors lack, or have other shapes.
    """
    missing, mismatched = info["missing_keys"], info["mismatched_keys"]
    if missing:
        raise ModelError(
            f"The weights of {name!r} lack {len(missing)} tensors, such as {min(missing)}: download them again."
        )
    if mismatched:
        tensor, found, wanted = min(mismatched)
        raise ModelError(
            f"The weights of {name!r} do not fit its config.json: {tensor} is {list(found)}, not {list(wanted)}."
        )


@contextmanager
def _nobody_asked(trust_remote_code: bool) -> Iterator[None]:
    """No question on standard input, neither here nor in a part of a model that is loaded without our argument.

    Where transformers may wait no second for an answer, it asks nobody and refuses.

    Raises:
        ForetokenError: If the caller's answer is neither yes nor no.
    """
    if not isinstance(trust_remote_code, bool):
        raise ModelError(f"trust_remote_code is {trust_remote_code!r}: give True or False.")
    with _asking:
        before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
        try:
            yield
        finally:
            dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def _continues_text(config: PreTrainedConfig) -> bool:
    """Whether transformers, or the code that comes with the model, has a causal language model for it."""
    brought = getattr(config, "auto_map", None) or {}
    return type(config) in AutoModelForCausalLM._model_mapping or "AutoModelForCausalLM" in brought


@cache  # one line for a process, however many models it loads
def _warn_of_slow(dtype: torch.dtype) -> None:
    """Say that this processor computes in a dtype by detours, if it does."""
    query = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
    supported = getattr(torch.ops.mkldnn, query, None) if query else None
    if supported is not None and not supported():
        name = str(dtype).removeprefix("torch.")
        logger.warning('This processor has no arithmetic for %s: dtype "float32" is faster, and rounds less.', name)
