"""Compiled loops, kept on disk from one process to the next where a disk allows it.

numba's own cache is not used, because it raises where its files cannot be read or written, and because it may run the
code of an older source after a crash or on a full disk: it writes its index first and the code afterwards.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from foretoken.core.errors import ForetokenError
from foretoken.files import writing
from foretoken.paths import cache_folder

F = TypeVar("F", bound=Callable[..., Any])

DIGEST_BYTES = hashlib.sha256().digest_size


def compiled(function: F, sources: Iterable[str], **options: Any) -> F:
    """Compile ``function`` on first use, for each types of arguments; keep the result on disk where that is possible.

    Args:
        function: What to compile.
        sources: The files that all of its code and constants come from. What was kept is compiled anew once one of them
            has changed.
        options: Of ``numba.njit``.
    """
    dispatcher = numba.njit(**options)(function)
    with suppress(OSError):  # the sources are not on the disk, as in a zip file
        dispatcher._cache = Kept(function, sources)
    return cast(F, dispatcher)


def folders() -> list[Path]:
    """Where compiled code is looked for, and kept in the first that can be written."""
    named = getattr(numba.config, "CACHE_DIR", "")  # NUMBA_CACHE_DIR
    if named:
        return [Path(named).absolute()]
    return [Path(__file__).parent / "__pycache__", cache_folder() / "compiled"]


class Kept(NullCache):
    """What numba asks for the compiled code of one function: a file for each types of arguments.

    A file is the SHA-256 of its key and its code, and then the code. So code of another source or another version is
    not used, nor is a damaged file. Whatever goes wrong here costs the time of compiling and nothing else.

    Args:
        function: The function.
        sources: See ``compiled``.

    Raises:
        OSError: If a source cannot be read.
    """

    def __init__(self, function: Callable[..., Any], sources: Iterable[str]) -> None:
        self._name = f"{function.__module__}.{function.__qualname__}"
        # Now, not at the first use: by then a file may no longer be what was imported.
        self._sources = [hashlib.sha256(Path(source).read_bytes()).hexdigest() for source in sources]

    @property
    def cache_path(self) -> str:
        return str(folders()[0])

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
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
        key = repr((machine, numba.__version__, self._sources)).encode()
        return f"{self._name}-{hashlib.sha256(repr(machine).encode()).hexdigest()[:16]}.nbc", key
