"""GGUF files of the bundled model, made once."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0")


@cache
def gguf_file(kind: str) -> Path:
    """The bundled model with matrices of one type."""
    from foretoken.export.gguf import export_gguf

    path = _folder() / f"tiny-{kind}.gguf"
    export_gguf("tiny", path, kind)
    return path


@cache
def _folder() -> Path:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
