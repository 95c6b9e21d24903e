"""An answer as a row of the history's file, and as a line of what ``export`` writes."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from foretoken.core.errors import ForetokenError
from foretoken.texts import is_text, open_lines

Tokens = npt.NDArray[np.int32]
Row = tuple[str, str, float, bytes]  # namespace, fingerprint, time and packed tokens

MAX_TOKENS = 2**20  # of an answer: a longer one is neither kept nor read
MAX_NAME = 2**16  # characters of a namespace or a fingerprint
MAX_TIME = 253_402_214_400  # seconds; the last day of the year 9999, beyond which there are no dates
BATCH_ROWS, BATCH_BYTES = 256, 4 * 2**20  # read or written at once, so that nobody waits long
MAX_BAD_LINES = 10_000  # of an import, before it is given up


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


def unpack(blob: object, checksum: object) -> Tokens | None:
    """The tokens of a blob; None if it is not as it was written, or was never tokens."""
    if not isinstance(blob, bytes) or len(blob) % 4 or zlib.crc32(blob) != checksum:
        return None
    tokens = np.frombuffer(blob, "<i4").astype(np.int32)
    return tokens if tokens.size and tokens.min() >= 0 else None


def is_kept(row: Row) -> bool:
    """Whether an answer is of a size that is kept: neither empty nor too long, and its names neither."""
    namespace, fingerprint, _, blob = row
    return 0 < len(blob) <= 4 * MAX_TOKENS and max(len(namespace), len(fingerprint)) <= MAX_NAME


def line_of(namespace: str, fingerprint: str, when: float, tokens: Tokens) -> bytes:
    """A line of an export."""
    row = {"namespace": namespace, "fingerprint": fingerprint, "time": when, "tokens": tokens.tolist()}
    return json.dumps(row).encode() + b"\n"


def parse(line: str) -> Row:
    """The row of a line that ``export`` wrote; the time may lack.

    Raises:
        ValueError: If it is no such line.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("no object")
    namespace, fingerprint, tokens = row.get("namespace"), row.get("fingerprint"), row.get("tokens")
    when = row.get("time", time.time())
    if not is_text(namespace) or not is_text(fingerprint) or type(when) not in (int, float):
        raise ValueError("no namespace, fingerprint or time")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise ValueError("no tokens")
    if not 0 <= when <= MAX_TIME:
        raise ValueError("no date")
    read = namespace, fingerprint, float(when), pack(tokens)
    if not is_kept(read):
        raise ValueError("too short or too long")
    return read


def batches(path: Path, namespace: str | None, bad: list[int]) -> Iterator[list[Row]]:
    """The rows of an export, of one namespace or all, some at a time; the numbers of lines without one go to ``bad``.

    Raises:
        ForetokenError: If the file cannot be read to its end, or is no export; all rows before have been given.
    """
    batch: list[Row] = []
    size = 0
    try:
        with open_lines(path) as lines:
            for number, line, fault in lines:
                try:
                    row = parse(line) if fault is None else None
                except (ValueError, RecursionError):
                    row = None
                if row is None:
                    bad.append(number)
                    if len(bad) > MAX_BAD_LINES:
                        raise ForetokenError(
                            f"The file {str(path)!r} is no export: over {MAX_BAD_LINES:,} lines hold no answer."
                        )
                    continue
                if namespace in (None, row[0]):
                    batch.append(row)
                    size += len(row[3])
                if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
    except ForetokenError:
        yield batch
        raise
    yield batch


def check_suffix(path: Path) -> None:
    """Refuse the name of a file that is compressed otherwise than by gzip.

    Raises:
        ForetokenError: If it is such a name.
    """
    if path.suffix in (".bz2", ".xz", ".zip", ".zst"):
        raise ForetokenError(f"The file {str(path)!r} would have to be {path.suffix[1:]}: use .gz, or no compression.")


def compressing(path: Path, raw: IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    """The file, through gzip where its name ends so."""
    if path.suffix != ".gz":
        return nullcontext(raw)
    return gzip.GzipFile(filename="", fileobj=raw, mode="wb")  # type: ignore[return-value]
