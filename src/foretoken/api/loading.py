"""Models and tokenizers from a folder, the hub or the package, with a clear sentence where that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from foretoken.core.errors import ForetokenError

TINY = Path(__file__).parent.parent / "models" / "tiny"
DTYPES = {
    "auto": "auto",
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_model(name: str, dtype: str = "auto", device: str | None = None) -> PreTrainedModel:
    """The causal language model of a folder, of the hub, or "tiny"; see ``foretoken.load``.

    Raises:
        ForetokenError: If it cannot be loaded.
    """
    if dtype not in DTYPES:
        raise ForetokenError(f"There is no dtype {dtype!r} here: choose one of {', '.join(DTYPES)}.")
    path = resolve(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # A broken folder can raise anything, from OSError to a safetensors or a JSON error: all of it is the user's input.
    try:
        config = AutoConfig.from_pretrained(path)
    except Exception as error:
        raise ForetokenError(f"The model {name!r} could not be read: {_reason(error)}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ForetokenError(
            f"The model {name!r} ({config.model_type}) is not a causal language model: choose one that continues text."
        )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], output_loading_info=True)
        model, info = loaded
        model.to(device)
    except Exception as error:
        raise ForetokenError(f"The weights of {name!r} could not be loaded: {_reason(error)}") from error
    if info["missing_keys"]:
        raise ForetokenError(
            f"The weights of {name!r} lack {len(info['missing_keys'])} tensors, {min(info['missing_keys'])} for one: "
            "download them again."
        )
    return cast(PreTrainedModel, model)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model.

    Raises:
        ForetokenError: If it is missing or cannot be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolve(name))
    except Exception as error:
        raise ForetokenError(
            f"The model {name!r} has no tokenizer that can be read: put its tokenizer.json beside it. {_reason(error)}"
        ) from error
    # Where the files are missing, transformers may make an empty tokenizer instead of failing.
    ids = tokenizer.encode("a", add_special_tokens=False)
    if not ids or ids == [tokenizer.unk_token_id]:
        raise ForetokenError(f"The model {name!r} has no tokenizer that can be read: put its tokenizer.json beside it.")
    return tokenizer


def resolve(name: str) -> str:
    """The path of a local model, or the name as it is for the hub.

    Raises:
        ForetokenError: If a path was meant and nothing is there.
    """
    if name == "tiny":
        return str(TINY)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ForetokenError(f"The folder {name!r} holds no model: it has no config.json.")
        return str(path)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ForetokenError(f"There is no model folder {name!r}: give a folder with a config.json, or a hub name.")
    return name


def _reason(error: Exception) -> str:
    """What went wrong, on one line and not too long."""
    return " ".join(str(error).split())[:300] or type(error).__name__
