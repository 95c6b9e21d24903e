"""A tokenizer without its model: from a tokenizer.json, a model folder, the hub or the package."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from foretoken.core.errors import ForetokenError
from foretoken.texts import read_bytes

TINY = Path(__file__).parent / "models" / "tiny"
MAX_SIZE = 1 << 28  # bytes of a tokenizer.json; the largest in use have some 40 MB


def load_tokenizer(where: str) -> Tokenizer:
    """The tokenizer that ``where`` names.

    Args:
        where: A tokenizer.json, plain or .gz; a folder with a model or with a tokenizer.json; a hub name; or "tiny".

    Raises:
        ForetokenError: If there is none.
    """
    path = TINY if where == "tiny" else Path(os.path.expanduser(where))
    if os.path.isfile(path):
        return _read(path)
    if os.path.isdir(path) and (path == TINY or not (path / "config.json").is_file()):
        if not (path / "tokenizer.json").is_file():
            raise ForetokenError(f"The folder {where!r} holds no tokenizer: it has no tokenizer.json.")
        return _read(path / "tokenizer.json")
    # A model's own settings can add tokens to those of its tokenizer.json.
    from foretoken.engines.transformers import loading

    tokenizer = getattr(loading.load_tokenizer(where), "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise ForetokenError(f"The model {where!r} has no fast tokenizer: put its tokenizer.json beside it.")
    return tokenizer


def batch_encoder(tokenizer: Tokenizer) -> Callable[[list[str]], list[list[int]]]:
    """Makes tokens of many texts at once, on all cores, each as it is: nothing added, nothing cut off."""
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def _read(path: Path) -> Tokenizer:
    content = read_bytes(path, MAX_SIZE)
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ForetokenError(f"The file {str(path)!r} could not be read: it is not a tokenizer.json.") from error
