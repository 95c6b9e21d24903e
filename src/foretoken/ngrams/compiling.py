"""Compiled loops, which are kept on disk between processes if the disk allows it.

numba's own cache is not used, because it raises where its files cannot be read or written, and because it may run the
code of an older source after a crash or on a full disk: it writes its index first and the code afterwards.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from numba.extending import register_jitable

from foretoken.core.errors import ForetokenError
from foretoken.files import writing
from foretoken.paths import cache_folder

F = TypeVar("F", bound=Callable[..., Any])

DIGEST_BYTES = hashlib.sha256().digest_size
NOT_FROM_C: dict[str, Any] = {"no_cfunc_wrapper": True}  # a way in from C would take time to compile, too
PACKAGE = __name__.partition(".")[0]

_helper_options: dict[Any, dict[str, Any]] = {}


def compiled(function: F, **options: Any) -> F:
    """Compile a function on its first call, once for each types of arguments, and keep the result on disk if possible.

    Args:
        function: What to compile.
        options: Of ``numba.njit``.
    """
    dispatcher = numba.njit(**NOT_FROM_C, **options)(function)
    dispatcher._cache = Kept(function, options)
    return cast(F, dispatcher)


def helper(function: F, **options: Any) -> F:
    """Let compiled functions call this one, which stays a plain function for everybody else.

    A way in from Python would take longer to compile than a small function does, and is kept for each on disk.
    """
    _helper_options[function] = options
    return register_jitable(**NOT_FROM_C, **options)(function)


def part(function: F, **options: Any) -> F:
    """Let compiled functions take in the lines of this one; for a function that is called from one place.

    Code of its own is made where it is called from Python.
    """
    return cast(F, numba.njit(inline="always", **options)(function))


def definition(function: Any, options: dict[str, Any]) -> str:
    """All that the compiled code of a function depends on, as a text: its bytecode, and the values that it reads.

    Functions and constants count wherever they are defined, so that no change of any file is missed. Of other packages
    only names are read.
    """
    return repr((_described(options, set()), _described(function, set())))


def _described(value: Any, seen: set[Any]) -> Any:
    """A description of a value with the same ``repr`` in every process."""
    if isinstance(value, Dispatcher):
        value = value.py_func
    value = getattr(value, "_defn", value)  # an intrinsic: the function that makes its code
    if isinstance(value, FunctionType) and value.__module__.partition(".")[0] == PACKAGE:
        if value in seen:
            return value.__qualname__
        seen.add(value)
        code = _described_code(value.__code__, value.__globals__, seen)
        within = [_described(cell.cell_contents, seen) for cell in value.__closure__ or ()]
        return value.__qualname__, _described(_helper_options.get(value), seen), value.__defaults__, code, within
    if isinstance(value, set | frozenset):  # whose order differs from process to process
        return sorted(map(repr, value))
    if isinstance(value, dict):
        return [(name, _described(part, seen)) for name, part in value.items()]
    if isinstance(value, np.ndarray):
        return repr(value.dtype), value.shape, value.tobytes()
    if hasattr(value, "__name__"):  # a class, a module, a function of another package
        return getattr(value, "__module__", None), value.__name__, getattr(value, "_fields", ())
    return repr(value)


def _described_code(code: CodeType, names: dict[str, Any], seen: set[Any]) -> Any:
    nested = [const for const in code.co_consts if isinstance(const, CodeType)]
    consts = [repr(const) for const in code.co_consts if not isinstance(const, CodeType)]
    read = {name: names[name] for name in code.co_names if name in names}
    for module in [value for value in read.values() if isinstance(value, ModuleType)]:
        within = {f"{module.__name__}.{name}": getattr(module, name, None) for name in code.co_names}
        read |= {name: value for name, value in within.items() if value is not None}
    described = [(name, _described(value, seen)) for name, value in read.items()]
    return code.co_code, code.co_names, consts, described, [_described_code(part, names, seen) for part in nested]


def folders() -> list[Path]:
    """Where compiled code is looked for, and kept in the first that can be written."""
    named = getattr(numba.config, "CACHE_DIR", "")  # NUMBA_CACHE_DIR
    if named:
        return [Path(named).absolute()]
    return [Path(__file__).parent / "__pycache__", cache_folder() / "compiled"]


class Kept(NullCache):
    """What numba asks for the compiled code of one function: a file for each types of arguments.

    A file is the SHA-256 of its key and its code, and then the code. So code of another definition or another version
    is not used, nor is a damaged file. Whatever goes wrong here costs the time of compiling and nothing else.

    Args:
        function: The function.
        options: What it is compiled with.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._function, self._options = function, options
        self._name = f"{function.__module__}.{function.__qualname__}"

    @property
    def cache_path(self) -> str:
        return str(folders()[0])

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # Compiled code needs numba's runtime, and none of what ``target_context.refresh`` imports to compile.
        rtsys.initialize(target_context)
        with suppress(Exception):
            name, key = self._name_and_key(sig, target_context.codegen())
            for folder in folders():
                with suppress(OSError):
                    content = (folder / name).read_bytes()
                    digest, code = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
                    if digest == hashlib.sha256(key + code).digest():
                        return CompileResult._rebuild(target_context, *pickle.loads(code))
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(Exception):
            name, key = self._name_and_key(sig, data.codegen)
            code = dumps(data._reduce())
            for folder in folders():
                with suppress(OSError, ForetokenError):
                    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
                    with writing(folder / name, mode=0o644) as file:
                        file.write(hashlib.sha256(key + code).digest() + code)
                    return

    def _name_and_key(self, sig: Any, codegen: Any) -> tuple[str, bytes]:
        """The file, one for each machine, Python and package folder, and what its code depends on."""
        machine = (repr(sig), codegen.magic_tuple(), sys.implementation.cache_tag, __file__)
        key = repr((machine, numba.__version__, definition(self._function, self._options))).encode()
        return f"{self._name}-{hashlib.sha256(repr(machine).encode()).hexdigest()[:16]}.nbc", key
