"""A background corpus: what followed every context of a big text, counted once, frozen and memory-mapped.

A store is a folder: ``meta.json``, ``rows.npy`` and ``index.npy``. A context is the last n tokens, n = 1 .. ``ORDERS``,
known by a 64-bit hash that continues the hash of the shorter context, so that one pass over the last tokens finds all
of them; the orders share one table. A row is one successor of one context, two uint32::

    row[0] = check        the low 32 bits of the context's hash
    row[1] = token | log_count << 20 | log_other << 26

where ``log_count`` is ``quantize`` of how often this token followed, and ``log_other`` of how often another one did.
Rows are sorted by the hash of their context, a context's own by falling count (of equals, the one seen last comes
first), and only the ``TOP`` best are kept. Those of the contexts whose hash begins with the bits b are
``rows[index[b] : index[b + 1]]``, about 8. ``foretoken.memory.corpus`` builds stores.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretoken.core.errors import ForetokenError
from foretoken.ngrams.arrays import BACKGROUND_ORDERS, extend_hashes

FORMAT = 1
ORDERS = BACKGROUND_ORDERS
TOP = 4
TOKEN_BITS = 20
LOG_BITS = 6
MAX_VOCABULARY = 1 << TOKEN_BITS

META, INDEX, ROWS = "meta.json", "index.npy", "rows.npy"
FIELDS = ("format", "fingerprint", "orders", "top", "min_count", "index_bits", "documents", "tokens", "rows")

HEADER = 128  # bytes of an .npy file before its numbers
MAX_META = 1 << 16  # bytes of meta.json
MAX_NUMBER = 1 << 63


def context_hashes(context: Sequence[int] | NDArray[Any], orders: int = ORDERS) -> list[int]:
    """The hashes of the last 1, 2, .. tokens of ``context``, at most ``orders`` of them.

    >>> context_hashes([7, 5]) == [*context_hashes([5]), context_hashes([7, 5])[1]]
    True
    """
    hashes = []
    state = np.zeros(1, np.uint64)  # an array, since scalars warn where they wrap
    for token in list(context)[::-1][:orders]:
        state = extend_hashes(state, np.array([token], np.uint64))
        hashes.append(int(state[0]))
    return hashes


def position_hashes(tokens: Sequence[int] | NDArray[Any], orders: int = ORDERS) -> list[NDArray[np.uint64]]:
    """For n = 1 .. ``orders``, the hashes of the n tokens before position n, n + 1, .. of one document."""
    words = np.asarray(tokens, np.uint64)
    hashes = []
    state = np.zeros(len(words) + 1, np.uint64)
    for order in range(1, min(orders, len(words)) + 1):
        state = extend_hashes(state[1:], words[: len(words) - order + 1])
        hashes.append(state[:-1])  # the last context has no successor
    return hashes


def quantize(count: int) -> int:
    """A count on a scale of quarter octaves that fits 6 bits; 0 for none.

    >>> [quantize(count) for count in (0, 1, 2, 3, 4, 100, 10**9)]
    [0, 1, 5, 7, 9, 28, 63]
    """
    return min(63, 1 + round(4 * math.log2(count))) if count else 0


@dataclass(frozen=True, eq=False)
class Background:
    """A store, opened: pages are read from the disk as they are needed, and shared between processes.

    Args:
        meta: What ``meta.json`` says.
        index: Where the rows of each bucket begin, and one more.
        rows: The rows, [number, 2].
    """

    meta: dict[str, Any]
    index: NDArray[np.uint32] | NDArray[np.uint64]
    rows: NDArray[np.uint32]

    @classmethod
    def open(cls, folder: str | Path, fingerprint: str | None = None) -> Background:
        """Map the store in ``folder``.

        Args:
            folder: Where it lies.
            fingerprint: Of the tokenizer that will be used with it. If None, it is not checked.

        Raises:
            ForetokenError: If there is no store, if it is incomplete, if this version cannot read it, or if it was
                built with another tokenizer.
        """
        folder = Path(folder)
        meta = read_meta(folder)
        if fingerprint is not None and meta["fingerprint"] != fingerprint:
            raise ForetokenError(
                f"The background corpus {str(folder)!r} was built with another tokenizer than this model's: build one "
                "with foretoken corpus build --model."
            )
        index = _mapped(folder, INDEX, index_type(meta["rows"]), ((1 << meta["index_bits"]) + 1,))
        rows = _mapped(folder, ROWS, "<u4", (meta["rows"], 2))
        if int(index[-1]) != len(rows):
            raise _damaged(folder)
        return cls(meta, index, rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the mapped arrays."""
        return self.index.nbytes + self.rows.nbytes

    def successors(self, context: Sequence[int]) -> list[list[tuple[int, int, int]]]:
        """What followed the last 1, 2, .. tokens of ``context``: (token, log_count, log_other), best first.

        This is the reader to compare others with; it is plain, not fast.
        """
        found = []
        for hash_ in context_hashes(context, self.meta["orders"]):
            bucket = hash_ >> (64 - self.meta["index_bits"])
            rows = self.rows[int(self.index[bucket]) : int(self.index[bucket + 1])]
            found.append([unpack(int(value)) for check, value in rows if int(check) == hash_ & 0xFFFFFFFF])
        return found


def unpack(value: int) -> tuple[int, int, int]:
    """The token, log_count and log_other of a row's second word.

    >>> unpack(7 | 3 << 20 | 5 << 26)
    (7, 3, 5)
    """
    return value & (MAX_VOCABULARY - 1), value >> TOKEN_BITS & 63, value >> (TOKEN_BITS + LOG_BITS)


def read_meta(folder: Path) -> dict[str, Any]:
    """What the store's ``meta.json`` says, ``FIELDS`` and nothing else.

    Raises:
        ForetokenError: If there is no finished store, or this version cannot read it.
    """
    name = repr(str(folder))
    try:
        if not folder.is_dir():
            raise ForetokenError(f"There is no background corpus {name}: make one with foretoken corpus build.")
        if not (folder / META).is_file():
            raise ForetokenError(
                f"The folder {name} holds no finished background corpus: it has no {META}; run foretoken corpus build "
                "again, which goes on where it stopped."
            )
        with (folder / META).open("rb") as file:
            text = file.read(MAX_META)
    except OSError as error:
        raise _unreadable(folder, error) from error
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(folder) from error
    if not isinstance(meta, dict):
        raise _damaged(folder)
    format_ = meta.get("format")
    if type(format_) is int and FORMAT < format_ < MAX_NUMBER:
        raise ForetokenError(
            f"The background corpus {name} has format {format_}, and this version of foretoken reads format {FORMAT}: "
            "update foretoken, or build the corpus again."
        )
    numbers = [meta.get(field) for field in FIELDS if field != "fingerprint"]
    if not (
        is_fingerprint(meta.get("fingerprint"))
        and all(type(number) is int and 0 < number < MAX_NUMBER for number in numbers)
        and (meta["format"], meta["orders"], meta["top"]) == (FORMAT, ORDERS, TOP)
        and meta["index_bits"] <= 48
    ):
        raise _damaged(folder)
    return {field: meta[field] for field in FIELDS}


def is_fingerprint(value: Any) -> bool:
    """Whether it can be a tokenizer's fingerprint: a short text that a terminal shows as it is."""
    return isinstance(value, str) and len(value) <= 100 and value.isprintable()


def index_type(rows: int) -> str:
    """The numbers of an index over so many rows, as NumPy writes their type."""
    return "<u4" if rows < 1 << 32 else "<u8"


def header(descr: str, shape: tuple[int, ...]) -> bytes:
    """The beginning of an .npy file, of the same length whatever the shape, so that it can be written last."""
    described = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    start = b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little")
    return start + described.ljust(HEADER - 11) + b"\n"


def _mapped(folder: Path, name: str, descr: str, shape: tuple[int, ...]) -> Any:
    """Map an array that ``header`` begins; no other file is looked into any further.

    Raises:
        ForetokenError: If the file holds another array or cannot be read.
    """
    path = folder / name
    try:
        if stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for a writer
            with path.open("rb") as file:
                whole = os.fstat(file.fileno()).st_size >= HEADER + math.prod(shape) * np.dtype(descr).itemsize
                if whole and file.read(HEADER) == header(descr, shape):
                    return np.memmap(file, descr, "r", HEADER, shape)
    except FileNotFoundError as error:
        raise _damaged(folder) from error
    except OSError as error:
        raise _unreadable(folder, error) from error
    raise _damaged(folder)


def _unreadable(folder: Path, error: OSError) -> ForetokenError:
    return ForetokenError(
        f"The background corpus {str(folder)!r} could not be read: {error.strerror}: let it be read, or build another."
    )


def _damaged(folder: Path) -> ForetokenError:
    return ForetokenError(
        f"The background corpus {str(folder)!r} is damaged: its files do not fit each other; build it again."
    )
