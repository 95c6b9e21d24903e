"""Does llama.cpp make the same tokens of a text as the model's own tokenizer? A hundred texts are asked."""

from __future__ import annotations

import ctypes
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from foretoken.core.errors import ModelError
from foretoken.measure.prompts import bundled_prompts

logger = logging.getLogger("foretoken")


def texts(added: Sequence[str]) -> list[str]:
    """A hundred texts: the prompts that come with the package, and what tokenizers tend to disagree on.

    The latter are runs of spaces, numbers, many scripts, code, and what looks like a special token of some model.

    Args:
        added: Tokens that are found in a text before anything else; one of the texts is made of them.
    """
    prompts = [json.loads(line)["prompt"] for line in bundled_prompts().splitlines()]
    others = (files("foretoken.export") / "texts.jsonl").read_text(encoding="utf-8")
    return [*prompts, *map(json.loads, others.splitlines()), "".join(f"{token}a {token}\n" for token in added)]


def check_same_tokens(tokenizer: Any, added: Sequence[str], write: Callable[[IO[bytes]], None]) -> int:
    """Compare the tokens of the texts, special ones included.

    Args:
        tokenizer: The model's own, of transformers.
        added: As ``texts`` takes them.
        write: Writes a GGUF file that need have no weights.

    Returns:
        How many texts were compared; 0 where llama.cpp is missing, and a warning is logged.

    Raises:
        ForetokenError: If one text has other tokens in llama.cpp.
    """
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        logger.warning(
            "The tokens were not compared with those of llama.cpp, because llama-cpp-python cannot be used "
            "(%s): pip install llama-cpp-python.",
            error,
        )
        return 0
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    asked = texts(added)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        with path.open("wb") as file:
            write(file)
        with llama_cpp_tokenizer(llama_cpp, path) as encode:
            for text in asked:
                ours, theirs = backend.encode(text).ids, encode(text)
                if ours != theirs:
                    raise ModelError(
                        f"Nothing was written, because llama.cpp makes other tokens of {text[:80]!r} than the model's "
                        f"tokenizer: {theirs[:20]}, not {ours[:20]}."
                    )
    return len(asked)


@contextmanager
def llama_cpp_tokenizer(llama_cpp: Any, path: Path) -> Iterator[Callable[[str], list[int]]]:
    """Makes tokens of a text as llama.cpp reads a GGUF file, special ones included; no weights are loaded.

    Raises:
        ForetokenError: If llama.cpp does not take the file.
    """
    log = logging.getLogger("llama-cpp-python")
    level = log.level
    log.setLevel(logging.CRITICAL)
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    model = None
    try:
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if model is None:
            raise ModelError("Nothing was written, because this version of llama.cpp does not take the tokenizer.")
        vocabulary = llama_cpp.llama_model_get_vocab(model)

        def encode(text: str) -> list[int]:
            data = text.encode()
            tokens = (ctypes.c_int32 * (len(data) + 2))()  # one for each byte, one before and one after
            number = llama_cpp.llama_tokenize(vocabulary, data, len(data), tokens, len(tokens), True, True)
            return tokens[:number]

        yield encode
    finally:
        if model is not None:
            llama_cpp.llama_model_free(model)
        log.setLevel(level)
