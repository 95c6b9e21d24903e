"""Models and tokenizers from a folder, the hub or the package, with a clear sentence where that fails.

A model's own code runs only where the caller says so. Transformers asks on standard input where nobody has decided, so
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
from transformers.utils import is_peft_available

from foretoken.core.errors import ForetokenError

TINY = Path(__file__).parent.parent / "models" / "tiny"
DTYPES = {
    "auto": "auto",
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
logger = logging.getLogger("foretoken")
_asking = threading.Lock()


def load_model(
    name: str, dtype: str = "auto", device: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The causal language model of a folder, of the hub, or "tiny"; see ``foretoken.load``.

    Raises:
        ForetokenError: If it cannot be loaded.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ForetokenError(f"There is no dtype {dtype!r} here: choose one of {', '.join(DTYPES)}.")
    path, place = resolve(name), find_device(device)
    # A broken folder can raise anything, from OSError to a safetensors or a JSON error: all of it is the user's input.
    with _nobody_asked(trust_remote_code):
        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise ForetokenError(f"The model {name!r} could not be read: {reason(error)}") from error
        if not _continues_text(config):
            raise ForetokenError(
                f"The model {name!r} ({config.model_type}) is not a causal language model: "
                "choose one that continues text."
            )
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=DTYPES[dtype], output_loading_info=True, trust_remote_code=trust_remote_code
            )
            model, info = loaded
            model.to(place)
        except Exception as error:
            raise ForetokenError(f"The weights of {name!r} could not be loaded: {reason(error)}") from error
    if info["missing_keys"]:
        raise ForetokenError(
            f"The weights of {name!r} lack {len(info['missing_keys'])} tensors, {min(info['missing_keys'])} for one: "
            "download them again."
        )
    if "generate" in vars(model):  # a folder's custom_generate/generate.py
        raise ForetokenError(f"The model {name!r} brings its own generate, which is not drafted for: use it as it is.")
    if place.type == "cpu":
        _warn_of_slow(model.dtype)
    return cast(PreTrainedModel, model)


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
        except Exception as error:
            raise ForetokenError(f"{refused} {reason(error)}") from error
    # Where the files are missing, transformers makes a tokenizer of special tokens, and a marked space at most.
    if len(ordinary) < 2:
        raise ForetokenError(refused)
    return tokenizer


def resolve(name: str) -> str:
    """The path of a local model, or the name as it is for the hub.

    Raises:
        ForetokenError: If a path was meant and nothing is there.
    """
    if not isinstance(name, str | os.PathLike):
        raise ForetokenError(f"The model is {name!r}: give a folder with a config.json, or a hub name.")
    name = os.fspath(name)
    if name == "tiny":
        return str(TINY)
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        if os.path.isfile(os.path.join(path, "config.json")):
            return path
        if os.path.isfile(os.path.join(path, "adapter_config.json")):
            raise ForetokenError(
                f"The folder {name!r} holds an adapter, not a model: merge it into its model with peft, and save that."
            )
        raise ForetokenError(f"The folder {name!r} holds no model: it has no config.json.")
    if os.path.exists(path) or os.path.isabs(path) or name.startswith((".", "~")) or name.count("/") > 1:
        raise ForetokenError(f"There is no model folder {name!r}: give a folder with a config.json, or a hub name.")
    return name


def find_device(name: str | None) -> torch.device:
    """The device of this name; a GPU where None and there is one.

    Raises:
        ForetokenError: If the name means nothing here, or no numbers can be kept there.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device that is named well may not be there, or hold no numbers
    except Exception as error:
        raise ForetokenError(
            f'The device {name!r} cannot be used: give "cpu", or "cuda" where there is a GPU. {reason(error)}'
        ) from error
    return device


def reason(error: Exception) -> str:
    """What went wrong, on one line, not too long, and without what would move a terminal's cursor."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    if "trust_remote_code" in text:
        return (
            "It needs code that comes with it, which runs only if you say so: read that code, then call "
            "foretoken.load(..., trust_remote_code=True)."
        )
    return text[:300] or type(error).__name__


@contextmanager
def _nobody_asked(trust_remote_code: bool) -> Iterator[None]:
    """No question on standard input, neither here nor in a part of a model that is loaded without our argument.

    Where transformers may wait no second for an answer, it asks nobody and refuses.

    Raises:
        ForetokenError: If the caller's answer is neither yes nor no.
    """
    if not isinstance(trust_remote_code, bool):
        raise ForetokenError(f"trust_remote_code is {trust_remote_code!r}: give True or False.")
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
        logger.warning('This processor has no arithmetic for %s: dtype "float32" is faster here, and rounds less.', name)
