"""Answers of earlier requests, kept on disk: what a drafter remembers from one process to the next."""

from __future__ import annotations

import errno
import gzip
import itertools
import json
import logging
import os
import sqlite3
import stat
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self, TypeVar

import numpy as np
import numpy.typing as npt

from foretoken.core.errors import ForetokenError
from foretoken.paths import data_folder

Tokens = npt.NDArray[np.int32]
Row = tuple[str, str, float, bytes]  # namespace, fingerprint, time and packed tokens
T = TypeVar("T")

APPLICATION_ID = 0x666F7265  # "fore": by this a file is known for a history
SCHEMA_VERSION = 1
SCHEMA = (
    # Ids rise in the order of arrival, which is the order of eviction. SQLite would not notice a flipped bit in a blob.
    "CREATE TABLE answers (id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, fingerprint TEXT NOT NULL,"
    " time REAL NOT NULL, checksum INTEGER NOT NULL, tokens BLOB NOT NULL)",
    "CREATE INDEX answers_by_source ON answers (namespace, fingerprint)",
    # The sum of all sizes, kept up to date, since to add them up would take longer with every answer.
    "CREATE TABLE total (bytes INTEGER NOT NULL)",
    "INSERT INTO total VALUES (0)",
    "CREATE TRIGGER added AFTER INSERT ON answers BEGIN UPDATE total SET bytes = bytes + length(NEW.tokens); END",
    "CREATE TRIGGER gone AFTER DELETE ON answers BEGIN UPDATE total SET bytes = bytes - length(OLD.tokens); END",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
# What SQLite says of a damaged file; SQLITE_ERROR where a table is missing.
DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}

MAX_TIME = 253_402_214_400  # seconds; the last day of the year 9999, beyond which there are no dates
BATCH = 64  # answers read or written at once by export and import

logger = logging.getLogger("foretoken")


@dataclass(frozen=True, slots=True)
class NamespaceStats:
    """What is kept for one namespace and one tokenizer.

    Args:
        namespace: Whose answers.
        fingerprint: Which tokenizer the tokens are of.
        answers: How many.
        tokens: How many tokens in them all.
        oldest: When the first of them was added, in seconds since 1970.
        newest: When the last was.
    """

    namespace: str
    fingerprint: str
    answers: int
    tokens: int
    oldest: float
    newest: float

    @property
    def bytes(self) -> int:
        return 4 * self.tokens


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: how many answers it took, and the numbers of the lines that hold none."""

    answers: int
    bad_lines: tuple[int, ...]


class UnfitHistoryError(sqlite3.DatabaseError):
    """A file that SQLite reads well and this version of foretoken does not."""


class History:
    """Answers by namespace and tokenizer fingerprint, in one SQLite file that several processes share.

    Nothing here breaks generation. A damaged file, or one of a newer version, is moved aside with a warning and a new
    one begun. Where the file cannot be used (no right to write, a full disk, a lock that somebody holds) there is one
    warning, and from then on the history keeps nothing and returns nothing. Any thread may call any method.

    Args:
        path: The file, by default the one of ``default_path``. It comes into being with the first answer.
        max_bytes: The most bytes of tokens to keep, over all namespaces; the oldest answers go first, and an answer
            that is larger by itself is not kept.
        strict: Raise ForetokenError instead of warning, and move nothing: for commands whose purpose is the history.
        timeout: How many seconds to wait for other processes that write.

    Raises:
        ForetokenError: If ``max_bytes`` is negative.
    """

    def __init__(
        self, path: Path | None = None, max_bytes: int = 256 * 2**20, *, strict: bool = False, timeout: float = 5.0
    ) -> None:
        if max_bytes < 0:
            raise ForetokenError(f"max_bytes is {max_bytes}: it is 0 or more.")
        self.path = Path(os.path.realpath(path or default_path()))  # the same file after a change of folder
        self.max_bytes = max_bytes
        self.strict = strict
        self._timeout = timeout
        self._lock = threading.Lock()
        self._off = False
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._identity: tuple[int, int] | None = None
        self._close: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, namespace: str, fingerprint: str, tokens: Sequence[int] | npt.NDArray[np.integer]) -> None:
        """Keep an answer; once this returns, it outlives the process.

        Raises:
            ForetokenError: If a token is no integer from 0 to 2**31 - 1.
        """
        self._insert([(namespace, fingerprint, time.time(), pack(tokens))])

    def answers(self, namespace: str, fingerprint: str, max_tokens: int) -> list[Tokens]:
        """The newest ``max_tokens`` tokens, oldest answer first; the first one may lack its beginning."""

        def read(connection: sqlite3.Connection) -> list[Tokens]:
            newest: list[Tokens] = []
            room = max_tokens
            rows = connection.execute(
                "SELECT tokens, checksum FROM answers WHERE namespace = ? AND fingerprint = ? ORDER BY id DESC",
                (namespace, fingerprint),
            )
            while room > 0 and (row := rows.fetchone()):
                newest.append(unpack(*row)[-room:])
                room -= len(newest[-1])
            rows.close()  # or the unread rest would hold back the log
            return newest[::-1]

        return self._use(read, [])

    def stats(self) -> list[NamespaceStats]:
        """One entry for each namespace and tokenizer, in the order of their names."""

        def read(connection: sqlite3.Connection) -> list[NamespaceStats]:
            rows = connection.execute(
                "SELECT namespace, fingerprint, count(*), sum(length(tokens)) / 4, min(time), max(time)"
                " FROM answers GROUP BY namespace, fingerprint ORDER BY namespace, fingerprint"
            )
            return [NamespaceStats(*row) for row in rows]

        return self._use(read, [])

    def clear(self, namespace: str | None) -> int:
        """Delete the answers of a namespace, or all for None, so that no trace stays in the file; return how many."""

        def delete(connection: sqlite3.Connection) -> int:
            deleted = connection.execute("DELETE FROM answers WHERE ?1 IS NULL OR namespace = ?1", (namespace,))
            # The file is written anew without the deleted pages, and the log, which holds the old ones, emptied.
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return deleted.rowcount

        return self._use(delete, 0)

    def export(self, path: Path, namespace: str | None = None) -> int:
        """Write the answers, of one namespace or all, to a file of JSON lines, oldest first; return how many.

        Raises:
            ForetokenError: If the file cannot be written.
        """
        if os.path.realpath(path) == str(self.path):
            raise ForetokenError(f"The file {str(path)!r} is the history itself: export to another.")
        # What an earlier export wrote stays until this one is whole; a pipe is written to as it is.
        part = path if path.exists() and not path.is_file() else path.with_name(path.name + ".part")
        count = 0
        try:
            # As private as the history.
            with (
                open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as raw,
                packed(path, raw) as lines,
            ):
                for row in self._rows(namespace):
                    lines.write(json.dumps(row).encode() + b"\n")
                    count += 1
            if part != path:
                os.replace(part, path)
        except OSError as error:
            raise ForetokenError(f"The file {str(path)!r} could not be written: {reason_of(error)}.") from error
        finally:
            if part != path:
                part.unlink(missing_ok=True)
        return count

    def import_(self, path: Path, namespace: str | None = None) -> Imported:
        """Add the answers of a file that ``export`` wrote, of one namespace or all; bad lines are passed over.

        Raises:
            ForetokenError: If the file cannot be read to its end; the answers before that place have been added.
        """
        count, bad = 0, []
        batch: list[Row] = []
        try:
            with open(path, "rb") as raw, packed(path, raw) as lines:
                for number, line in enumerate(lines, start=1):
                    try:
                        row = parse(line)
                    except (ValueError, RecursionError):
                        bad.append(number)
                        continue
                    if namespace in (None, row[0]):
                        batch.append(row)
                    if len(batch) == BATCH:
                        count += self._insert(batch)
                        batch = []
        except (OSError, EOFError, zlib.error) as error:
            self._insert(batch)
            raise ForetokenError(f"The file {str(path)!r} could not be read: {reason_of(error)}.") from error
        return Imported(count + self._insert(batch), tuple(bad))

    def close(self) -> None:
        """Close the file; from now on the history keeps nothing and returns nothing."""
        with self._lock:
            self._off = True
            self._disconnect()

    def _insert(self, rows: Iterable[Row]) -> int:
        """Add rows and evict what no longer fits; return how many were taken."""
        fit = [(*row[:3], zlib.crc32(row[3]), row[3]) for row in rows if 0 < len(row[3]) <= self.max_bytes]

        def insert(connection: sqlite3.Connection) -> int:
            with connection:  # commits, or rolls back
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(
                    "INSERT INTO answers (namespace, fingerprint, time, checksum, tokens) VALUES (?, ?, ?, ?, ?)", fit
                )
                self._evict(connection)
            return len(fit)

        return self._use(insert, 0, create=True) if fit else 0

    def _evict(self, connection: sqlite3.Connection) -> None:
        (excess,) = connection.execute("SELECT coalesce(sum(bytes), 0) - ? FROM total", (self.max_bytes,)).fetchone()
        if excess <= 0:
            return
        last = 0
        oldest = connection.execute("SELECT id, length(tokens) FROM answers ORDER BY id")
        while excess > 0 and (row := oldest.fetchone()):
            last = row[0]
            excess -= row[1]
        oldest.close()
        connection.execute("DELETE FROM answers WHERE id <= ?", (last,))

    def _rows(self, namespace: str | None) -> Iterator[dict[str, object]]:
        """What export writes, read in small parts so that nobody waits for the whole."""
        after = -1
        while True:

            def read(connection: sqlite3.Connection, after: int = after) -> list[tuple[int, dict[str, object]]]:
                rows = connection.execute(
                    "SELECT id, namespace, fingerprint, time, tokens, checksum FROM answers"
                    " WHERE id > ? AND (?2 IS NULL OR namespace = ?2) ORDER BY id LIMIT ?3",
                    (after, namespace, BATCH),
                )
                return [
                    (id_, {"namespace": name, "fingerprint": mark, "time": when, "tokens": unpack(*packed_).tolist()})
                    for id_, name, mark, when, *packed_ in rows
                ]

            batch: list[tuple[int, dict[str, object]]] = self._use(read, [])
            if not batch:
                return
            after = batch[-1][0]
            yield from (row for _, row in batch)

    def _use(self, work: Callable[[sqlite3.Connection], T], otherwise: T, create: bool = False) -> T:
        """The result of ``work``; ``otherwise`` where there is no file, or it cannot be used."""
        with self._lock:
            for tries_left in (2, 1, 0):  # on a new file, after a damaged one has been moved aside
                if self._off:
                    break
                try:
                    connection = self._connect(create)
                    return otherwise if connection is None else work(connection)
                except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
                    self._recover(error, tries_left > 0)
        return otherwise

    def _recover(self, error: Exception, another_try: bool) -> None:
        """Move a damaged file aside, or give the history up."""
        reason = reason_of(error)
        try:
            if another_try and self._is_gone():
                return
            if another_try and not self.strict and is_damage(error):
                if sys.platform == "win32":  # which moves no open file
                    self._disconnect()
                with alone(self.path.parent, self._timeout):
                    if not self._is_gone():
                        self._move_aside(reason)
                return
        except OSError as worse:
            reason = reason_of(worse)
        finally:
            # Only now: SQLite deletes the log of a file when it closes it, but not that of a file that has moved.
            self._disconnect()
        if self.strict:
            raise ForetokenError(f"The history {str(self.path)!r} cannot be used: {reason}.") from error
        self._off = True
        logger.warning("The history %r cannot be used, and answers go on without it: %s.", str(self.path), reason)

    def _connect(self, create: bool) -> sqlite3.Connection | None:
        """The connection to the file that lies at the path now; None where none does and none is to be made."""
        if self._connection is not None and (self._process != os.getpid() or self._is_gone()):
            self._disconnect()
        if self._connection is None:
            if create:
                make_private(self.path)
            elif identity(self.path) is None:
                return None
            with alone(self.path.parent, self._timeout):
                self._open()
        return self._connection

    def _open(self) -> None:
        self._identity = identity(self.path)
        # mode=rw: SQLite would make a file that others may read.
        where, wait = self.path.as_uri() + "?mode=rw", self._timeout
        connection = sqlite3.connect(where, wait, isolation_level=None, check_same_thread=False, uri=True)
        self._process = os.getpid()
        self._close = weakref.finalize(self, close_in, self._process, connection)
        prepare(connection)
        self._connection = connection

    def _is_gone(self) -> bool:
        """Whether the file that was opened lies at the path no more: somebody deleted it or moved it aside."""
        return identity(self.path) != self._identity

    def _disconnect(self) -> None:
        if self._close is not None:
            self._close()
        self._connection = None

    def _move_aside(self, reason: str) -> None:
        """Give the file and its logs a free name beside it; what is there already is never written over."""
        for number in itertools.count(1):
            aside = Path(f"{self.path}.corrupt-{number}")
            if any(os.path.lexists(f"{aside}{end}") for end in ("-wal", "-shm", "-journal")):
                continue
            with suppress(FileExistsError):
                os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # the name is ours
                break
        try:
            for end in ("-wal", "-shm", "-journal"):
                with suppress(FileNotFoundError):
                    os.replace(f"{self.path}{end}", f"{aside}{end}")
            os.replace(self.path, aside)  # last: after a crash before this, the damaged file is found again
        except OSError:
            aside.unlink()
            raise
        logger.warning("The history %r is moved to %r and begun anew: %s.", str(self.path), aside.name, reason)


def default_path() -> Path:
    """Where a user's history lies: beside other programs' data."""
    return data_folder() / "history.sqlite"


def pack(tokens: Sequence[int] | npt.NDArray[np.integer]) -> bytes:
    """Tokens as little-endian int32.

    Raises:
        ForetokenError: If one does not fit.
    """
    array = np.asarray(tokens) if len(tokens) else np.empty(0, np.int32)
    fit = array.ndim == 1 and array.dtype.kind in "iu"
    if not fit or (array.size and not 0 <= int(array.min()) <= int(array.max()) < 2**31):
        raise ForetokenError("An answer to remember has a token that is no integer from 0 to 2**31 - 1.")
    return array.astype("<i4").tobytes()


def unpack(blob: object, checksum: object) -> Tokens:
    """The tokens of a blob that is as it was written.

    Raises:
        UnfitHistoryError: If it is not.
    """
    if not isinstance(blob, bytes) or zlib.crc32(blob) != checksum:
        raise UnfitHistoryError("an answer in it is damaged")
    return np.frombuffer(blob, "<i4").astype(np.int32)


def parse(line: bytes) -> Row:
    """The row of a line that ``export`` wrote; the time may lack.

    Raises:
        ValueError: If it is no such line.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("no object")
    namespace, fingerprint, tokens = row.get("namespace"), row.get("fingerprint"), row.get("tokens")
    when = row.get("time", time.time())
    if not isinstance(namespace, str) or not isinstance(fingerprint, str) or type(when) not in (int, float):
        raise ValueError("no namespace, fingerprint or time")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise ValueError("no tokens")
    if not 0 <= when <= MAX_TIME:
        raise ValueError("no date")
    (namespace + fingerprint).encode()  # half a surrogate pair is no text
    return namespace, fingerprint, float(when), pack(tokens)


def packed(path: Path, raw: IO[bytes]) -> IO[bytes]:
    """The file, through gzip where its name ends so."""
    return gzip.GzipFile(fileobj=raw, mode=raw.mode) if path.suffix == ".gz" else raw  # type: ignore[return-value]


def identity(path: Path) -> tuple[int, int] | None:
    """Which file lies at this path; None for no file.

    Raises:
        OSError: If it cannot be told, or what lies there is a folder or a device.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return status.st_dev, status.st_ino


def make_private(path: Path) -> None:
    """Make an empty file that only its owner may read, in such a folder, where they do not exist."""
    if identity(path) is not None:
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Only ever a new file: to open and close one that SQLite has open would drop the process's locks on it.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


@contextmanager
def alone(folder: Path, timeout: float) -> Iterator[None]:
    """Keep other processes from opening or moving a history of this folder meanwhile.

    SQLite finds its logs by name: who opens a file while another moves it could take the logs of the next one for its.

    Raises:
        OSError: If they do not let go of it in time.
    """
    if sys.platform == "win32":  # where no open file can be moved
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        give_up_at = time.monotonic() + timeout
        while not locked(handle):
            if time.monotonic() > give_up_at:
                raise TimeoutError(errno.ETIMEDOUT, "its folder is locked")
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def locked(handle: int) -> bool:
    """Lock a folder till it is closed; False where another has."""
    import fcntl  # not on Windows

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # some network file systems lock no folders: better to go on than to remember nothing
    return True


def is_damage(error: Exception) -> bool:
    """Whether an error speaks of the file, and not of a lock, a full disk or another thing that may pass."""
    if isinstance(error, UnicodeDecodeError):  # how Python fails to tell of a damaged schema
        return True
    if not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.ProgrammingError):
        return False
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in DAMAGE


def prepare(connection: sqlite3.Connection) -> None:
    """Begin an empty file, and see that any other is a history of this version.

    Raises:
        OSError: If it is another program's.
        UnfitHistoryError: If it is of another version.
    """
    marks = marks_of(connection)
    if marks == (0, 0, 0):
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if marks_of(connection) == (0, 0, 0):  # no other process has been faster
                for statement in SCHEMA:
                    connection.execute(statement)
        marks = marks_of(connection)
    application, version, _ = marks
    if application != APPLICATION_ID:
        raise OSError(errno.EINVAL, "it is another program's database")
    if version != SCHEMA_VERSION:
        raise UnfitHistoryError(f"it is of version {version} and this foretoken reads version {SCHEMA_VERSION}")
    # Writers and readers do not wait for each other. A killed process loses no committed answer, a power cut may lose
    # the last ones, and neither damages the file.
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = NORMAL")


def marks_of(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """Whose file it is, its version, and how many tables it has."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return application, version, tables


def reason_of(error: Exception) -> str:
    """What went wrong, without numbers and paths."""
    if isinstance(error, UnicodeDecodeError):
        return "its schema is damaged"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


_NOT_OURS: list[sqlite3.Connection] = []


def close_in(process: int, connection: sqlite3.Connection) -> None:
    """Close a connection; a forked child must keep what its parent opened, and not close it (SQLite's rule)."""
    if os.getpid() == process:
        connection.close()
    else:
        _NOT_OURS.append(connection)
