"""The standard streams in any state: closed, full, without a reader, or non-blocking."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, TextIO


class OutputError(Exception):
    """Standard output takes no more.

    Args:
        cause: What the system said.
    """

    def __init__(self, cause: OSError) -> None:
        reason = "it is closed" if cause.errno == errno.EBADF else cause.strerror or str(cause)
        super().__init__(f"Standard output could not be written: {reason}.")
        self.reader_left = isinstance(cause, BrokenPipeError)


def guard() -> None:
    """Replace the standard streams by ones that work in every state.

    A closed stream gets its number back from the null device. Otherwise the next file that is opened would take that
    number, and then what libraries write to the stream. To read a closed standard input raises ``OSError``. The first
    failure of standard output raises ``OutputError``. What cannot be written is dropped, so that nothing fails again
    when the interpreter flushes the streams at its end.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(_null(os.O_WRONLY), closefd=False)
    if sys.stdout is sys.__stdout__:  # otherwise the caller has replaced it already
        sys.stdout = _guarded(sys.stdout, os.O_RDONLY, "replace", OutputError)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _guarded(sys.stderr, os.O_WRONLY, "backslashreplace", None)


def _guarded(stream: TextIO | None, flags: int, errors: str, failure: type[OutputError] | None) -> TextIO:
    if stream is None:
        stream = os.fdopen(_null(flags), "w", closefd=False)
    writer = io.BufferedWriter(_Writer(stream, failure))
    return io.TextIOWrapper(writer, stream.encoding, errors, line_buffering=failure is None or stream.isatty())


def _null(flags: int) -> int:
    """The null device under the lowest free number. Processes that are started get it, too."""
    number = os.open(os.devnull, flags)
    os.set_inheritable(number, True)
    return number


class _Writer(io.RawIOBase):
    """Writes to a stream until that fails once, and then to nowhere.

    Args:
        stream: Where to write.
        failure: What is raised then; None to go on.
    """

    def __init__(self, stream: TextIO, failure: type[OutputError] | None) -> None:
        self._stream, self._failure, self._failed = stream, failure, False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, data: Any) -> int:
        while not self._failed:
            try:
                return os.write(self.fileno(), data)
            except BlockingIOError:
                select.select([], [self], [])
            except OSError as error:
                self._failed = True
                if self._failure is not None:
                    raise self._failure(error) from error
        return len(data)
