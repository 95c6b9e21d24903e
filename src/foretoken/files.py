"""Files that appear whole or not at all, and never in the place of something that is no file."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

from foretoken.core.errors import ForetokenError

PRIVATE = 0o600
OPEN_FILES = (("/", "dev"), ("/", "proc"))  # where the names of open files and of devices are


@contextmanager
def writing(path: Path, mode: int | None = None, folders: bool = False) -> Iterator[IO[bytes]]:
    """Write a file beside ``path`` and put it in place once the block has ended without an error.

    Until then, and if the block raises, ``path`` stays as it was. A link is written through. A pipe or
    a device, such as /dev/stdout, is written directly, because it cannot be replaced.

    Args:
        path: Where the file will stand.
        mode: Its permissions. If None, those of the file that it replaces, or the user's default.
        folders: Make the folders that are missing; they go again if the file does not come to be. Otherwise its folder
            must exist.

    Raises:
        ForetokenError: If it cannot be written.
    """
    try:
        if is_special(path):
            with path.open("ab") as file:  # what a shell's >> has put there before stays
                yield file
            return
        target = Path(os.path.realpath(path))
        with _folders(target) if folders else nullcontext():
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


def check_writable(path: Path, folders: bool = False) -> None:
    """Refuse before the work what ``writing`` would refuse after it; nothing is left behind.

    Args:
        path: Where the file will stand.
        folders: As ``writing`` takes it.

    Raises:
        ForetokenError: If ``path`` is a folder, or its folder does not exist or takes no file.
    """
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if is_special(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        target = Path(os.path.realpath(path))
        folder = next(folder for folder in target.parents if folder.exists()) if folders else target.parent
        for name in target.relative_to(folder).parts:
            with suppress(FileNotFoundError):
                (folder / name).lstat()  # names that are too long
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ForetokenError(f"The file {str(path)!r} could not be written: {error.strerror or error}.") from error


def check_apart(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write two files to one place, or one onto a file that is read.

    Raises:
        ForetokenError: If two paths lead to the same file, through links too.
    """
    seen: list[Path] = []
    sources = [path for path in inputs if os.path.isfile(path)]  # a terminal or the null device may be both
    for path in outputs:
        if any(_same(path, other) for other in seen):
            raise ForetokenError(f"Two files would be written to {str(path)!r}: give each another name.")
        if any(_same(path, source) for source in sources):
            raise ForetokenError(f"The file {str(path)!r} is read by this command: write to another one.")
        seen.append(path)


def _same(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:  # one is not there yet
        return os.path.realpath(path) == os.path.realpath(other)


@contextmanager
def _folders(path: Path) -> Iterator[None]:
    """Make the folders of ``path`` that are missing; if the block raises, they go again as far as they are empty."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


def lock(handle: int) -> bool:
    """Lock an open file or folder until it is closed; False where another process has locked it.

    True where nothing can be locked, as on Windows and on some network file systems: better go on than do nothing.
    """
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


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
    umask = os.umask(0o077)  # to ask is to set; meanwhile other threads' files are private
    os.umask(umask)
    return 0o666 & ~umask
