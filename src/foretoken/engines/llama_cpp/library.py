"""llama.cpp itself, and a GGUF file that it has loaded."""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from foretoken.core.errors import ModelError

MAGIC = b"GGUF"
ERROR = 4  # the level of a line of llama.cpp's log that says what went wrong
TELLING = "error loading model: "  # stands before the reason
TEXT = 1 << 16  # bytes that a value of a file's metadata may have here


def llama_cpp_version() -> str:
    """The version of llama-cpp-python."""
    import llama_cpp

    return str(llama_cpp.__version__)


_errors: list[str] = []  # what llama.cpp logged as an error of late


@cache
def library() -> ModuleType:
    """The low-level calls, with the library's log kept to its errors.

    Raises:
        ForetokenError: If llama-cpp-python is missing, or its library cannot be loaded.
    """
    try:
        import llama_cpp.llama_cpp as calls
    except ModuleNotFoundError as error:
        raise ModelError(f"This model needs {error.name}: pip install 'foretoken[llama-cpp]'.") from error
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"The library of llama-cpp-python cannot be loaded ({error}): install it again with "
            "pip install --force-reinstall llama-cpp-python, or name the folder of libllama in LLAMA_CPP_LIB_PATH."
        ) from error
    calls.llama_log_set(_LOG, ctypes.c_void_p(0))
    calls.llama_backend_init()
    found: ModuleType = calls
    return found


def _keep_error(level: int, text: bytes, data: Any) -> None:
    if level == ERROR:
        _errors.append(text.decode("utf-8", "replace").strip())
        del _errors[:-20]


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_keep_error)  # kept, as C calls it


def last_error() -> str:
    """Why something went wrong, as llama.cpp logged it of late; empty if it did not."""
    telling = [line.partition(TELLING)[2] for line in _errors if TELLING in line]
    return telling[-1] if telling else _errors[-1] if _errors else ""


class GGUFModel:
    """A model in llama.cpp's memory, which is freed with this object.

    Attributes:
        pointer: llama.cpp's own object.
        vocab: Its vocabulary there.
        vocab_size: How many tokens there are.

    Args:
        path: The file; of a model in several files, the first.
        gpu_layers: How many layers go to the GPU; -1 for all.

    Raises:
        ForetokenError: If it is no GGUF file, llama.cpp cannot load it, or it is no decoder of attention layers alone.
    """

    def __init__(self, path: Path, gpu_layers: int = 0) -> None:
        calls = library()
        check_is_gguf(path)
        parameters = calls.llama_model_default_params()
        parameters.n_gpu_layers = gpu_layers
        _errors.clear()
        self.pointer = calls.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.pointer:
            raise ModelError(f"llama.cpp cannot load {str(path)!r}: {last_error() or 'it does not say why'}.")
        weakref.finalize(self, calls.llama_model_free, self.pointer)
        self.path = path
        self.vocab = calls.llama_model_get_vocab(self.pointer)
        self.vocab_size = int(calls.llama_vocab_n_tokens(self.vocab))
        self._refuse_other_models()

    def _refuse_other_models(self) -> None:
        calls, model, name = library(), self.pointer, str(self.path)
        if calls.llama_model_is_recurrent(model) or calls.llama_model_is_hybrid(model):
            raise ModelError(
                f"The model in {name!r} keeps a recurrent state, which cannot go back to before a rejected guess: use "
                "llama.cpp's own programs for it, or a model with attention in every layer."
            )
        if calls.llama_model_has_encoder(model) or calls.llama_model_is_diffusion(model):
            raise ModelError(f"The model in {name!r} is not a decoder-only language model: use another file.")
        if self.vocab_size == 0 or calls.llama_vocab_type(self.vocab) == calls.LLAMA_VOCAB_TYPE_NONE:
            raise ModelError(f"The file {name!r} has no tokenizer, so that it can neither read nor write a text.")

    @property
    def context_length(self) -> int:
        """Tokens that it was trained to read."""
        return int(library().llama_model_n_ctx_train(self.pointer))

    @property
    def width(self) -> int:
        """Of the states that the output head reads."""
        return int(library().llama_model_n_embd_out(self.pointer))

    @property
    def cached_numbers(self) -> int:
        """How many numbers the cache holds of a token: keys and values of all layers."""
        calls, model = library(), self.pointer
        heads = max(1, calls.llama_model_n_head(model))
        width = calls.llama_model_n_embd(model) // heads
        return int(2 * calls.llama_model_n_layer(model) * calls.llama_model_n_head_kv(model) * width)

    @property
    def description(self) -> str:
        """Its architecture, size and type, such as "llama 1B Q8_0 1321079808 bytes"."""
        return f"{self._summary} {library().llama_model_size(self.pointer)} bytes"

    @property
    def weights(self) -> str:
        """The type of most of its weights, such as "Q8_0"."""
        return self._summary.split(" ", 2)[2]  # after the architecture and the number of parameters

    @property
    def _summary(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        library().llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata as text. None if it has no such key."""
        buffer = ctypes.create_string_buffer(TEXT)
        length = library().llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return None if length < 0 else buffer.value.decode("utf-8", "replace")


def check_is_gguf(path: Path) -> None:
    """Refuse what is no GGUF file before llama.cpp sees it.

    Raises:
        ForetokenError: If it is none.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise ModelError(f"The model {str(path)!r} cannot be read: {error.strerror or error}.") from error
    if magic != MAGIC:
        raise ModelError(f"{str(path)!r} is no GGUF file: its first bytes are not {MAGIC.decode()!r}.")
