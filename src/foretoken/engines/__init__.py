"""Engines, which run the target model: one file or folder each, imported when a model asks for it."""

from __future__ import annotations

import os
from fnmatch import fnmatch
from importlib import import_module
from typing import Any, cast

from foretoken.core.errors import ModelError
from foretoken.engines.base import FOUND, Engine, Exact

# Which module's ``load(name, dtype, device, trust_remote_code, speculator, exact)`` gives the engine of a model: the
# first whose pattern matches the model's name. The module's name is also that of the extra that installs the library.
ENGINES = {
    "toy": "foretoken.engines.toy",
    "*.gguf": "foretoken.engines.llama_cpp.engine",
    "*": "foretoken.engines.transformers.engine",
}


def engine_module(model: str) -> str:
    """The module of the engine that runs a model, by the model's name; nothing is imported."""
    return next(module for pattern, module in ENGINES.items() if fnmatch(model, pattern))


def import_engine(model: str) -> Any:
    """Import the module of the engine that runs a model, by the model's name.

    Raises:
        ForetokenError: If the engine's library is missing.
    """
    return _imported(engine_module(model))


def load_engine(
    model: str,
    dtype: str,
    device: str | None,
    trust_remote_code: bool,
    speculator: str | os.PathLike[str] | None = FOUND,
    exact: Exact = "auto",
) -> Engine:
    """The engine of a model by its name; see ``foretoken.load``.

    Raises:
        ForetokenError: If there is no such model, or the engine's library is missing.
    """
    if not isinstance(model, str | os.PathLike):
        raise ModelError(f"The model is {model!r}: give a folder with a config.json, or a hub name.")
    name = os.fspath(model)
    return cast(Engine, import_engine(name).load(name, dtype, device, trust_remote_code, speculator, exact))


def engine_of(
    model: Any, tokenizer: Any, speculator: str | os.PathLike[str] | None = FOUND, exact: Exact = "auto"
) -> Engine:
    """The engine of a model and a tokenizer that are loaded already: those of transformers come in two parts.

    Raises:
        ForetokenError: If it cannot be drafted for.
    """
    return cast(
        Engine, _imported(ENGINES["*"]).TransformersEngine(model, tokenizer, speculator=speculator, exact=exact)
    )


def _imported(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("foretoken"):
            raise
        extra = module.split(".")[2]
        raise ModelError(f"This model needs {error.name}: pip install 'foretoken[{extra}]'.") from error
