"""The marks of a history's file: how a new one begins, and how it is told from other files."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import struct
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

APPLICATION_ID = 0x666F7265  # "fore": by this a file is known for a history
SCHEMA_VERSION = 2
SCHEMA = (
    # Ids rise in the order of arrival, which is the order of eviction. SQLite would not notice a flipped bit in a blob.
    "CREATE TABLE answers (id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, fingerprint TEXT NOT NULL,"
    " time REAL NOT NULL, checksum INTEGER NOT NULL, tokens BLOB NOT NULL)",
    "CREATE INDEX answers_by_source ON answers (namespace, fingerprint)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
TABLES = [("table", "answers", "answers", SCHEMA[0]), ("index", "answers_by_source", "answers", SCHEMA[1])]

HEADER = b"SQLite format 3\0"
LOG_HEADERS = {
    "-wal": (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83"),
    "-journal": (b"\xd9\xd5\x05\xf9",),
    "-shm": (struct.pack("=I", 3_007_000),),
}
LOGS = tuple(LOG_HEADERS)


class UnfitFileError(sqlite3.DatabaseError):
    """A file that bears a history's mark, and holds what this version of foretoken cannot read."""


def identity(path: Path) -> tuple[int, int] | None:
    """Which file lies at this path. None if there is none.

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


def is_empty(path: Path) -> bool:
    """Whether there is nothing at this path that could be lost: no file, or one without content."""
    try:
        return identity(path) is None or path.stat().st_size == 0
    except FileNotFoundError:  # it was moved aside between the two
        return True


def is_ours(path: Path) -> bool:
    """Whether a file bears a history's mark, as far as it can be read; nothing is written.

    SQLite reads it, since to open and close a file otherwise would drop the locks that this process has on it.

    Raises:
        OSError: If it may not be read.
        sqlite3.OperationalError: If it cannot be opened.
    """
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, "Permission denied")
    try:
        # immutable: without a look at logs and locks, and without making any.
        with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as connection:
            connection.execute("PRAGMA writable_schema = ON")  # or a file that has been cut is not read at all
            (mark,) = connection.execute("PRAGMA application_id").fetchone()
            return bool(mark == APPLICATION_ID)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
    with path.open("rb") as file:  # which SQLite cannot read, so no connection has locks on it
        head = file.read(72)
    return head.startswith(HEADER) and head[68:] == struct.pack(">I", APPLICATION_ID)


def check_logs(path: Path) -> None:
    """Refuse files beside this one that SQLite would take for its logs, and write over.

    Raises:
        OSError: If there is such a file.
    """
    ends = [end for end in LOGS if os.path.lexists(f"{path}{end}")]
    if "-wal" in ends and "-shm" in ends:
        ends.remove("-shm")  # in use, perhaps by this process, whose locks on it end when it is opened and closed
    for end in ends:
        log = Path(f"{path}{end}")
        with suppress(FileNotFoundError):  # whoever closed the file last has just deleted it
            if not _is_log(log, LOG_HEADERS[end]):
                raise OSError(errno.EINVAL, f"the file {log.name!r} beside it is not its log")


def _is_log(path: Path, headers: Collection[bytes]) -> bool:
    """Whether a file begins as a log does, or holds nothing yet.

    Raises:
        FileNotFoundError: If it is not there.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    with path.open("rb") as file:
        head = file.read(4)
    return not head.strip(b"\0") or head in headers


def empty_log(connection: sqlite3.Connection) -> bool:
    """Write the log into the file and cut it to nothing; False where another uses it."""
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy


def is_begun(connection: sqlite3.Connection) -> bool:
    """Whether the file has its tables and its log."""
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    return mode == "wal" and _has_tables(connection)


def begin(connection: sqlite3.Connection) -> None:
    """Make the tables of a file that is empty, and a log, so that writers and readers do not wait for each other."""
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # so that it can shrink
    with transaction(connection):
        if not _has_tables(connection):  # no other process has been faster
            for statement in SCHEMA:
                connection.execute(statement)
    connection.execute("PRAGMA journal_mode = WAL").fetchall()


def check(connection: sqlite3.Connection) -> None:
    """See that a file is a history of this version, with just its tables, or empty.

    Another table of the same name could be a view that never ends, or have a trigger.

    Raises:
        UnfitFileError: If it is not.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    if (mark, version) == (0, 0) and not _has_tables(connection):
        return
    if mark == APPLICATION_ID and version != SCHEMA_VERSION:
        raise UnfitFileError(f"it is of version {version} and this foretoken reads version {SCHEMA_VERSION}")
    tables = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchmany(len(TABLES) + 1)
    if mark != APPLICATION_ID or len(tables) != len(TABLES) or {*tables} != {*TABLES}:
        raise UnfitFileError("its tables are not those of a history")


def _has_tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is not None


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write all or nothing of what the block writes."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
