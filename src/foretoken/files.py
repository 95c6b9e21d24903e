"""Files that appear whole or not at all, and never in the place of something that is no file."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from foretoken.core.errors import ForetokenError

PRIVATE = 0o600
OPEN_FILES = (("/", "dev"), ("/", "proc"))  # where the names of open files and of devices are


@contextmanager
def writing(path: Path, mode: int | None = None) -> Iterator[IO[bytes]]:
    """Write a file beside ``path`` and put it in place once the block has ended without an error.

    Until then, and if the block raises, whatever was at ``path`` stays as it was. A link is written through. A pipe or
    a device, such as /dev/stdout, is written directly, because it cannot be replaced.

    Args:
        path: Where the file will stand; its folder must exist.
        mode: Its permissions; those of the file that it replaces, or the user's default, if None.

    Raises:
        ForetokenError: If it cannot be written.
    """
    try:
        if is_special(path):
            with path.open("ab") as file:  # what a shell's >> has put there before stays
                yield file
            return
        target = path.resolve()
        handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, _mode_of(target) if mode is None else mode)
            os.replace(name, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise ForetokenError(f"The file {str(path)!r} could not be written: {error.strerror or error}.") from error


def check_writable(path: Path) -> None:
    """Refuse before the work what ``writing`` would refuse after it; nothing is left behind.

    Raises:
        ForetokenError: If ``path`` is a folder, or its folder does not exist or takes no file.
    """
    if path.is_dir():
        raise ForetokenError(f"The file {str(path)!r} could not be written: it is a folder.")
    if is_special(path):
        return
    target = path.resolve()
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise ForetokenError(f"The file {str(path)!r} could not be written: {error.strerror or error}.") from error


def is_special(path: Path) -> bool:
    """Whether it leads to something that is neither a file nor a folder, or to an open file such as /dev/stdout."""
    try:
        mode = path.stat().st_mode
        while path.is_symlink() and path.parts[:2] not in OPEN_FILES:
            path = path.parent / path.readlink()
    except OSError:
        return False
    return path.parts[:2] in OPEN_FILES or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _mode_of(path: Path) -> int:
    """The permissions of a file, or those that a new one gets."""
    with suppress(OSError):
        return stat.S_IMODE(path.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
