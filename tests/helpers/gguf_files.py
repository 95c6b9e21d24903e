"""GGUF files of the bundled model, made once."""

from __future__ import annotations

import atexit
import ctypes
import shutil
import tempfile
from functools import cache
from pathlib import Path

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0")
QUANTIZED = {"q4_k_m": 15, "q6_k": 18}  # by llama.cpp itself: its numbers of these types of file


@cache
def gguf_file(kind: str) -> Path:
    """The bundled model with matrices of one type."""
    from foretoken.export.gguf import export_gguf

    path = _folder() / f"tiny-{kind}.gguf"
    if kind in QUANTIZED:
        return _quantized(gguf_file("f32"), path, QUANTIZED[kind])
    export_gguf("tiny", path, kind)
    return path


def _quantized(source: Path, path: Path, file_type: int) -> Path:
    from foretoken.engines.llama_cpp.library import library

    parameters = library().llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, 1
    assert library().llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(parameters)) == 0
    return path


@cache
def _folder() -> Path:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
