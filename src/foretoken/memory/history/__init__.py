"""The history: answers that are kept on disk, so that drafters remember them from one process to the next."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foretoken.core.errors import ForetokenError
from foretoken.core.numbers import whole
from foretoken.files import PRIVATE, writing
from foretoken.memory.history.marks import (
    APPLICATION_ID,
    LOGS,
    SCHEMA,
    SCHEMA_VERSION,
    begin,
    empty_log,
    is_begun,
    transaction,
)
from foretoken.memory.history.rows import (
    BATCH_BYTES,
    BATCH_ROWS,
    MAX_NAME,
    MAX_TIME,
    MAX_TOKENS,
    Row,
    Tokens,
    batches,
    check_suffix,
    compressing,
    is_kept,
    line_of,
    pack,
    unpack,
)
from foretoken.memory.history.sqlite_file import SqliteFile, alone, logger
from foretoken.paths import data_folder
from foretoken.texts import is_text

__all__ = ["APPLICATION_ID", "SCHEMA", "SCHEMA_VERSION", "History", "Imported", "NamespaceStats", "default_path"]

MAX_ANSWERS = 2**15  # given back at once: each takes a drafter some microseconds to learn
LOG_BYTES = 4 * 2**20  # from this size on SQLite's log is written into the file
PAGE = 4096

# What no other program has written into a row.
SOUND = (
    "typeof(namespace) = 'text' AND typeof(fingerprint) = 'text'"
    f" AND length(namespace) <= {MAX_NAME} AND length(fingerprint) <= {MAX_NAME}"
    f" AND typeof(time) = 'real' AND time BETWEEN 0 AND {MAX_TIME}"
    f" AND typeof(tokens) = 'blob' AND length(tokens) <= {4 * MAX_TOKENS}"
)
SOUND_TOKENS = f"CASE WHEN {SOUND} THEN tokens END"
ROW_BYTES = "ifnull(length(tokens) + 2 * length(namespace) + 2 * length(fingerprint), 0) + 32"  # about


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


class History(SqliteFile):
    """Answers by namespace and tokenizer fingerprint, in one SQLite file that several processes share.

    Nothing here breaks generation. A damaged history, or one of another version, is moved aside with a warning and a
    new one begun. Where the file cannot be used (it is none of ours, there is no right to write, the disk is full,
    somebody holds a lock) there is one warning, and from then on the history keeps nothing and returns nothing. A
    damaged answer is passed over with a warning. Any thread may call any method, and a forked process, too.

    Args:
        path: The file, by default the one of ``default_path``. It comes into being with the first answer.
        max_bytes: The most bytes that the file takes, its log aside; the oldest answers go first, of whatever
            namespace, and an answer that is larger by itself is not kept.
        strict: Raise ForetokenError instead of warning, and move nothing: for commands whose purpose is the history.
        timeout: The most seconds that a call waits for other threads and processes; ``os.fork`` waits as long.

    Raises:
        ForetokenError: If ``max_bytes`` is not a whole number from 0 on, or another argument cannot be used.
    """

    def __init__(
        self, path: Path | None = None, max_bytes: int = 256 * 2**20, *, strict: bool = False, timeout: float = 5.0
    ) -> None:
        super().__init__(default_path() if path is None else Path(path), strict=strict, timeout=timeout)
        self.max_bytes = whole("max_bytes", max_bytes, 0)
        self._warned = False

    def check(self) -> None:
        """Say now, and not at the first answer, if the file cannot be used."""
        self._use(lambda connection: None, None)

    def add(self, namespace: str, fingerprint: str, tokens: Sequence[int] | npt.NDArray[np.integer]) -> None:
        """Keep an answer; once this returns, it outlives the process.

        Raises:
            ForetokenError: If a token is no integer from 0 to 2**31 - 1, or a name is no text.
        """
        check_names(namespace, fingerprint)
        self._insert([(namespace, fingerprint, time.time(), pack(tokens))])

    def answers(self, namespace: str, fingerprint: str, max_tokens: int) -> list[Tokens]:
        """The newest ``max_tokens`` tokens, oldest answer first; the first one may lack its beginning.

        At most ``MAX_ANSWERS`` answers come back.

        Raises:
            ForetokenError: If a name is no text.
        """
        check_names(namespace, fingerprint)
        newest: list[Tokens] = []
        room, before, seen, damaged = max_tokens, 2**63 - 1, 0, 0
        while room > 0 and seen < MAX_ANSWERS:
            batch = self._batch(
                f"SELECT id, checksum, {SOUND_TOKENS} FROM answers"
                " WHERE namespace = ? AND fingerprint = ? AND id < ? ORDER BY id DESC",
                (namespace, fingerprint, before),
            )
            if not batch:
                break
            for _, checksum, blob in batch:
                if (tokens := unpack(blob, checksum)) is None:
                    damaged += 1
                elif room > 0:
                    newest.append(tokens[-room:])
                    room -= len(tokens)
            before = batch[-1][0]
            seen += len(batch)
        self._warn_of(damaged)
        return newest[::-1]

    def stats(self) -> list[NamespaceStats]:
        """One entry for each namespace and tokenizer, in the order of their names."""

        def read(connection: sqlite3.Connection) -> list[NamespaceStats]:
            rows = connection.execute(
                "SELECT namespace, fingerprint, count(*), sum(length(tokens)) / 4, min(time), max(time)"
                f" FROM answers WHERE {SOUND} GROUP BY namespace, fingerprint ORDER BY namespace, fingerprint"
            )
            return [NamespaceStats(*row) for row in rows]

        return self._use(read, [])

    def clear(self, namespace: str | None) -> int:
        """Delete the answers of a namespace, or all for None, so that no trace stays in the file; return how many.

        Raises:
            ForetokenError: If the name is no text.
        """
        if namespace is not None:
            check_names(namespace)

        def delete(connection: sqlite3.Connection) -> int:
            return connection.execute("DELETE FROM answers WHERE ?1 IS NULL OR namespace = ?1", (namespace,)).rowcount

        def rewrite(connection: sqlite3.Connection) -> None:
            # The file is written anew without the deleted pages, and the log, which holds the old ones, emptied.
            connection.execute("VACUUM")
            if not empty_log(connection):
                raise BlockingIOError(errno.EAGAIN, "another program reads it, so deleted answers are still in its log")

        deleted = self._use(delete, 0)
        self._use(rewrite, None)
        return deleted

    def export(self, path: Path, namespace: str | None = None) -> int:
        """Write the answers, of one namespace or all, to a file of JSON lines, oldest first; return how many.

        The file is as private as the history. What lies at its place stays until the new one is whole.

        Raises:
            ForetokenError: If the file cannot be written, or is the history itself, or the name is no text.
        """
        self._refuse_own(path, "export to another")
        if namespace is not None:
            check_names(namespace)
        count = 0
        with writing(path, PRIVATE) as raw, compressing(path, raw) as lines:
            for line in self._lines(namespace):
                lines.write(line)
                count += 1
        return count

    def import_(self, path: Path, namespace: str | None = None) -> Imported:
        """Add the answers of a file that ``export`` wrote, of one namespace or all; bad lines are passed over.

        Raises:
            ForetokenError: If the file cannot be read to its end, or is no export; the answers before that place have
                been added.
        """
        self._refuse_own(path, "import another")
        if namespace is not None:
            check_names(namespace)
        bad: list[int] = []
        count = sum(self._insert(batch) for batch in batches(path, namespace, bad))
        return Imported(count, tuple(bad))

    def _insert(self, rows: Iterable[Row]) -> int:
        """Add rows and evict what no longer fits; return how many were taken."""
        fit = [
            (*row[:3], zlib.crc32(row[3]), row[3]) for row in rows if is_kept(row) and file_size(row) <= self.max_bytes
        ]

        def insert(connection: sqlite3.Connection) -> int:
            if fit:
                if not is_begun(connection):
                    with alone(self.path.parent):  # nobody shall look at it while its mark is not written
                        begin(connection)
                self._shorten_log(connection)
                with transaction(connection):
                    connection.executemany(
                        "INSERT INTO answers (namespace, fingerprint, time, checksum, tokens) VALUES (?, ?, ?, ?, ?)",
                        fit,
                    )
                    self._evict(connection)
            return len(fit)

        return self._use(insert, 0, create=True)

    def _evict(self, connection: sqlite3.Connection) -> None:
        """Delete the oldest answers, and give their pages back, until the file fits."""
        page = pragma(connection, "page_size")
        while (
            excess := (pragma(connection, "page_count") - pragma(connection, "freelist_count")) * page - self.max_bytes
        ) > 0:
            last = None
            oldest = connection.execute(f"SELECT id, {ROW_BYTES} FROM answers ORDER BY id")
            while excess > 0 and (row := oldest.fetchone()):
                last = row[0]
                excess -= row[1]
            oldest.close()
            if last is None:
                break
            connection.execute("DELETE FROM answers WHERE id <= ?", (last,))
        for _ in range(pragma(connection, "page_count") - self.max_bytes // page):
            connection.execute("PRAGMA incremental_vacuum(1)")  # one alone: Python stops at the first anyway

    def _shorten_log(self, connection: sqlite3.Connection) -> None:
        """Empty a log that has become long.

        Raises:
            BlockingIOError: If that has not been possible for long, since others read.
        """
        limit = min(LOG_BYTES, max(self.max_bytes // 4, 16 * PAGE))
        try:
            size = os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return
        # SQLite writes a log of over 1000 pages into the file by itself, but lets it stay as long.
        if size > limit and not empty_log(connection) and size > 16 * limit:
            raise BlockingIOError(errno.EAGAIN, "another program reads it and lets its log grow")

    def _lines(self, namespace: str | None) -> Iterator[bytes]:
        """What export writes, read in small parts so that nobody waits for the whole."""
        last, damaged = -(2**63), 0
        while batch := self._batch(
            f"SELECT id, namespace, fingerprint, time, checksum, {SOUND_TOKENS} FROM answers"
            " WHERE id > ?1 AND (?2 IS NULL OR namespace = ?2) ORDER BY id",
            (last, namespace),
        ):
            for id_, name, mark, when, checksum, blob in batch:
                if id_ <= last:
                    raise ForetokenError(f"The history {str(self.path)!r} is damaged: its answers are in no order.")
                last = id_
                if (tokens := unpack(blob, checksum)) is None:
                    damaged += 1
                else:
                    yield line_of(name, mark, when, tokens)
        self._warn_of(damaged)

    def _batch(self, select: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """The first rows that a statement gives; their last column is a blob."""

        def read(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            batch: list[tuple[Any, ...]] = []
            size = 0
            with closing(connection.execute(f"{select} LIMIT {BATCH_ROWS}", parameters)) as rows:
                while size < BATCH_BYTES and (row := rows.fetchone()):
                    batch.append(row)
                    size += len(row[-1] or b"")
            return batch  # after the statement's end, or the unread rest would hold back the log

        return self._use(read, [])

    def _refuse_own(self, path: Path, advice: str) -> None:
        """Refuse the history and its logs where another file is meant, and what is not compressed by gzip."""
        check_suffix(path)
        own = {str(self.path), *(f"{self.path}{end}" for end in LOGS)}
        with suppress(OSError):  # nothing lies there
            if os.path.realpath(path) in own or os.path.samefile(path, self.path):
                raise ForetokenError(f"The file {str(path)!r} is the history itself: {advice}.")

    def _warn_of(self, damaged: int) -> None:
        """Warn once of answers that were passed over."""
        if damaged and not self._warned:
            self._warned = True
            logger.warning("The history %r has damaged answers, which are passed over.", str(self.path))


def default_path() -> Path:
    """Where a user's history lies: beside other programs' data."""
    return data_folder() / "history.sqlite"


def file_size(row: Row) -> int:
    """The least bytes that a file with this answer alone takes."""
    namespace, fingerprint, _, blob = row
    names = len(namespace.encode()) + len(fingerprint.encode())
    return PAGE * (6 + (len(blob) + 2 * names) // (PAGE - 4))


def check_names(*names: str) -> None:
    """See that namespaces and fingerprints can be kept as UTF-8.

    Raises:
        ForetokenError: If one cannot.
    """
    for name in names:
        if not is_text(name):
            raise ForetokenError(f"The namespace {name!r} is no text: give a name in UTF-8.")


def pragma(connection: sqlite3.Connection, name: str) -> int:
    """The value of one of SQLite's pragmas."""
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
