"""One SQLite file that threads and processes share. It is opened and locked, and set aside if it is damaged."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

from foretoken.core.errors import ForetokenError
from foretoken.files import lock
from foretoken.memory.history.marks import LOGS, UnfitFileError, check, check_logs, identity, is_empty, is_ours

T = TypeVar("T")

PAUSE = 0.005  # seconds between two tries to get a lock
LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_INTERRUPT}
FAILURES = (OSError, sqlite3.Error, UnicodeDecodeError)  # Python cannot decode some messages on damaged schemas

logger = logging.getLogger("foretoken")


class SqliteFile:
    """A file that may be missing or unusable; work on it then gives a default result.

    Args:
        path: The file.
        strict: Raise ForetokenError if the file cannot be used. Otherwise warn once and do nothing from then on.
        timeout: The most seconds that one use of it waits for other threads and processes.

    Raises:
        ForetokenError: If the path or the timeout cannot be one.
    """

    def __init__(self, path: Path, *, strict: bool, timeout: float) -> None:
        if not 0 <= timeout <= threading.TIMEOUT_MAX:
            raise ForetokenError(f"timeout is {timeout}: it is a number of seconds, 0 or more.")
        if "\0" in str(path):
            raise ForetokenError(f"No file can be named {str(path)!r}.")
        self.path = Path(os.path.realpath(path))  # the same file after a change of folder
        self.strict = strict
        self._timeout = timeout
        self._lock = threading.Lock()
        self._forking: int | None = None  # the thread that holds the lock while the process forks
        self._off = False
        self._connection: sqlite3.Connection | None = None
        self._fuse = Fuse()
        self._identity: tuple[int, int] | None = None
        self._opened: list[sqlite3.Connection] = []  # the connection from its opening on
        # From now on, so that at the interpreter's end whoever uses the file is waited for before this closes it.
        weakref.finalize(self, close_all, self._opened)
        _FILES[id(self)] = self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; from now on nothing is kept in it and read from it."""
        with self._lock:
            self._off = True
            self._disconnect()

    def _use(self, work: Callable[[sqlite3.Connection], T], otherwise: T, create: bool = False) -> T:
        """The result of ``work``; ``otherwise`` where there is no file, or it cannot be used.

        ``work`` runs again from its beginning after a lock was in its way.
        """
        give_up_at = time.monotonic() + self._timeout
        moves_left = 2  # to another file that lies there now
        while True:
            left = give_up_at - time.monotonic()
            if not self._lock.acquire(timeout=max(0.0, left)):
                self._give_up(TimeoutError(errno.ETIMEDOUT, "another thread uses it"))
                return otherwise
            try:
                if self._off:
                    return otherwise
                connection = self._connect(create)
                return otherwise if connection is None else work(connection)
            except FAILURES as error:
                if self._connection is not None and not self._opened:  # closed, as the interpreter ends
                    return otherwise
                if is_locked(error):
                    again = left > 0
                else:
                    again = moves_left > 0 and self._mend(error, give_up_at)
                    moves_left -= 1
                if not again:
                    self._disconnect()
                    self._give_up(error)
            finally:
                self._lock.release()
            time.sleep(PAUSE)

    def _mend(self, error: Exception, give_up_at: float) -> bool:
        """Whether another try may succeed: another file lies there now, maybe since this moved a damaged one aside."""
        try:
            if self._is_gone() or code_of(error) == sqlite3.SQLITE_ERROR:  # other tables than when it was opened
                return True
            if self.strict or not is_damage(error):
                return False
            if sys.platform == "win32":  # which moves no open file
                self._disconnect()
            with alone(self.path.parent, give_up_at):
                if not self._is_gone():
                    if not is_ours(self.path):
                        return False
                    self._move_aside(reason_of(error))
            return True
        except FAILURES:
            return False
        finally:
            # Only now: SQLite deletes the log of a file when it closes it, but not that of a file that has moved.
            self._disconnect()

    def _give_up(self, error: Exception) -> None:
        reason = reason_of(error)
        if self.strict:
            raise ForetokenError(f"The history {str(self.path)!r} cannot be used: {reason}.") from error
        if not self._off:
            self._off = True
            logger.warning("The history %r cannot be used, and answers go on without it: %s.", str(self.path), reason)

    def _connect(self, create: bool) -> sqlite3.Connection | None:
        """The connection to the file that lies at the path now; None where there is nothing to be read."""
        if self._connection is not None and self._is_gone():
            self._disconnect()
        if self._connection is None:
            if create and identity(self.path) is None:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif not create and is_empty(self.path):
                return None
            with alone(self.path.parent):
                if create:
                    make_private(self.path)
                elif is_empty(self.path):  # another has just moved the damaged one aside
                    return None
                self._open()
        self._fuse.renew(self.path)
        return self._connection

    def _open(self) -> None:
        self._disconnect()  # from a try that went wrong half-way
        self._identity = identity(self.path)
        if not is_empty(self.path) and not is_ours(self.path):
            raise OSError(errno.EINVAL, "it is no history of foretoken's and is left alone")
        check_logs(self.path)
        # mode=rw: SQLite would make a file that others may read. No timeout: who waits shall not hold the lock.
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw", timeout=0, isolation_level=None, check_same_thread=False, uri=True
        )
        self._opened.append(connection)
        connection.text_factory = lambda text: text.decode(errors="backslashreplace")
        connection.set_progress_handler(self._fuse, Fuse.EVERY)
        self._fuse.renew(self.path)
        connection.execute("PRAGMA cell_size_check = ON")
        # A killed process loses no committed answer, a power cut may lose the last ones, and neither damages the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        check(connection)
        self._connection = connection

    def _is_gone(self) -> bool:
        """Whether the file that was opened lies at the path no more: somebody deleted it or moved it aside."""
        return identity(self.path) != self._identity

    def _disconnect(self) -> None:
        close_all(self._opened)
        self._connection = None

    def _move_aside(self, reason: str) -> None:
        """Give the file and its logs a free name beside it; what is there already is never written over."""
        for number in itertools.count(1):
            aside = Path(f"{self.path}.corrupt-{number}")
            if any(os.path.lexists(f"{aside}{end}") for end in LOGS):
                continue
            with suppress(FileExistsError):
                os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # the name is ours
                break
        try:
            for end in LOGS:
                with suppress(FileNotFoundError):
                    os.replace(f"{self.path}{end}", f"{aside}{end}")
            os.replace(self.path, aside)  # last: after a crash before this, the damaged file is found again
        except OSError:
            aside.unlink()
            raise
        logger.warning("The history %r is moved to %r and begun anew: %s.", str(self.path), aside.name, reason)

    def _before_fork(self) -> None:
        """Close the file, since a child would take locks that its parent has for its own.

        Another thread's work is waited for: SQLite's own locks, too, would never be free in the child.
        """
        if self._lock.acquire(timeout=self._timeout):
            self._forking = threading.get_ident()
            self._disconnect()

    def _after_fork(self, in_child: bool) -> None:
        held = self._forking == threading.get_ident()
        if in_child:
            _OF_PARENTS.extend(self._opened)  # still open, as another thread was at work for too long
            self._opened.clear()
            self._connection = None
            self._lock = threading.Lock()
        if held:
            self._forking = None
            if not in_child:
                self._lock.release()


class Fuse:
    """Ends a statement that does more than the file's size can explain, such as to read tables that never end."""

    EVERY = 100_000  # steps of SQLite's machine, about 3 milliseconds

    def __init__(self) -> None:
        self._left = 0

    def __call__(self) -> bool:
        self._left -= 1
        return self._left < 0

    def renew(self, path: Path) -> None:
        """Allow ten steps a byte, log included; a row takes at least 20 bytes, and no statement 200 steps for it."""
        size = 2**20
        for end in ("", "-wal"):
            with suppress(OSError):
                size += os.stat(f"{path}{end}").st_size
        self._left = 10 * size // self.EVERY


def make_private(path: Path) -> None:
    """Make an empty file that only its owner may read, where none exists."""
    # Only ever a new file: to open and close one that SQLite has open would drop the process's locks on it.
    if identity(path) is None:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


@contextmanager
def alone(folder: Path, give_up_at: float = 0.0) -> Iterator[None]:
    """Keep other processes from opening or moving a history of this folder meanwhile.

    SQLite finds its logs by name: who opens a file while another moves it could take the logs of the next one for its.

    Raises:
        BlockingIOError: If another has it, until ``time.monotonic()`` is ``give_up_at``.
        OSError: If the folder cannot be opened.
    """
    if sys.platform == "win32":  # where no open file can be moved
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        while not lock(handle):
            if time.monotonic() >= give_up_at:
                raise BlockingIOError(errno.EAGAIN, "its folder is locked")
            time.sleep(PAUSE)
        yield
    finally:
        os.close(handle)


def close_all(connections: list[sqlite3.Connection]) -> None:
    """Close them and forget them."""
    while connections:
        connections.pop().close()


def code_of(error: Exception) -> int | None:
    """SQLite's primary code of an error; None where it has none."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def is_locked(error: Exception) -> bool:
    """Whether another thread or process is in the way, and may not be soon."""
    return isinstance(error, BlockingIOError) or code_of(error) in LOCKED


def is_damage(error: Exception) -> bool:
    """Whether an error speaks of the file, and not of a lock, a full disk or another thing that may pass."""
    return isinstance(error, UnfitFileError | UnicodeDecodeError) or code_of(error) in DAMAGE


def reason_of(error: Exception) -> str:
    """What went wrong, without numbers and paths, and fit to be printed."""
    if isinstance(error, UnicodeDecodeError):
        return "its schema is damaged"
    if code_of(error) == sqlite3.SQLITE_INTERRUPT:
        return "it is damaged so that reading it never ends"
    # SQLite quotes names from the file.
    return (error.strerror if isinstance(error, OSError) else None) or repr(str(error))[1:-1]


_FILES: weakref.WeakValueDictionary[int, SqliteFile] = weakref.WeakValueDictionary()
_OF_PARENTS: list[sqlite3.Connection] = []  # which a child must not close


def _before_fork() -> None:
    for file in _FILES.valuerefs():
        if (live := file()) is not None:
            live._before_fork()


def _after_fork(in_child: bool) -> None:
    for file in _FILES.valuerefs():
        if (live := file()) is not None:
            live._after_fork(in_child)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=lambda: _after_fork(in_child=False),
        after_in_child=lambda: _after_fork(in_child=True),
    )
