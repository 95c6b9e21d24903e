"""Documents, from files or from memory, in pieces small enough to be tokenized one by one."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, cast

from numpy.typing import NDArray

from foretoken.core.errors import ForetokenError

PIECE = 1 << 18  # characters; what a tokenizer makes of a text takes a hundred times its size

Tokens = Sequence[int] | NDArray[Any]

# A line's end before something printed: tokenizers that split words cut here as well, so that the tokens are those of
# the whole text.
LINE_END = re.compile(r"\n(?=\S)")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a document.

    Args:
        content: Text, or tokens.
        first: Whether a document begins with it.
        read: Bytes of the source read up to here, to tell the progress.
    """

    content: str | Tokens
    first: bool
    read: int


class Source(Protocol):
    """Where documents come from; the same ones in the same order each time."""

    @property
    def name(self) -> str: ...

    @property
    def stamp(self) -> list[int]:
        """What changes when the source does: its bytes first, for a file also when it was written."""
        ...

    @property
    def bad(self) -> list[int]:
        """Numbers of the lines passed over so far because they could not be read."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """From the beginning."""
        ...


@dataclass(slots=True)
class Documents:
    """Texts, or arrays of tokens, that are at hand."""

    documents: Iterable[str | Tokens]
    name: str = "documents"
    bad: list[int] = field(default_factory=list)

    @property
    def stamp(self) -> list[int]:
        return [0]

    def pieces(self) -> Iterator[Piece]:
        for document in self.documents:
            if isinstance(document, str):
                for i, text in enumerate(cut([document])):
                    yield Piece(text, i == 0, 0)
            else:
                yield Piece(document, True, 0)


class File:
    """A file: JSON lines with ``output`` or ``text``, or else one document of UTF-8 text; plain, .gz or .xz.

    Args:
        path: The file; ``.jsonl`` is what tells JSON lines.

    Raises:
        ForetokenError: If it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path.resolve())
        self.bad: list[int] = []
        try:
            stat = path.stat()
        except OSError as error:
            raise ForetokenError(f"The file {str(path)!r} could not be read: {error.strerror}.") from error
        if not path.is_file():
            raise ForetokenError(f"{str(path)!r} is not a file: give files, {str(path / '*')!r} for those of a folder.")
        self.stamp = [stat.st_size, stat.st_mtime_ns]

    def pieces(self) -> Iterator[Piece]:
        self.bad.clear()
        name = self.path.name.removesuffix(".gz").removesuffix(".xz")
        try:
            with self.path.open("rb") as raw, _unpacked(self.path, raw) as stream:
                yield from self._lines(raw, stream) if name.endswith(".jsonl") else self._text(raw, stream)
        except UnicodeDecodeError as error:
            raise ForetokenError(f"The file {str(self.path)!r} is not UTF-8 text: leave it out.") from error
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise ForetokenError(f"The file {str(self.path)!r} is damaged: fetch it again, or leave it out.") from error
        except OSError as error:
            raise ForetokenError(f"The file {str(self.path)!r} could not be read: {error.strerror}.") from error

    def _text(self, raw: IO[bytes], stream: IO[bytes]) -> Iterator[Piece]:
        with io.TextIOWrapper(stream, encoding="utf-8", newline="") as text:  # line ends stay as they are
            for i, piece in enumerate(cut(iter(lambda: text.read(PIECE), ""))):
                yield Piece(piece, i == 0, raw.tell())

    def _lines(self, raw: IO[bytes], stream: IO[bytes]) -> Iterator[Piece]:
        for number, line in enumerate(stream, start=1):
            if line.isspace():
                continue
            document = answer(line)
            if document is None:
                self.bad.append(number)
                continue
            for i, piece in enumerate(cut([document])):
                yield Piece(piece, i == 0, raw.tell())


def answer(line: bytes) -> str | None:
    """The ``output`` of a row of JSON, its ``text`` where there is no output; None where there is neither."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    text = row.get("output", row.get("text"))
    if not isinstance(text, str):
        return None
    # JSON can hold half of a surrogate pair, which is no character.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def cut(blocks: Iterable[str]) -> Iterator[str]:
    r"""The text of ``blocks`` in pieces of about ``PIECE`` characters, cut where a line ends if it can be.

    >>> list(cut(["one\n", "two"]))
    ['one\ntwo']
    """
    rest, first = "", True
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > PIECE:
            ends = [match.end() for match in LINE_END.finditer(rest, start + PIECE // 2, start + PIECE)]
            end = ends[-1] if ends else start + PIECE
            yield rest[start:end]
            start, first = end, False
        rest = rest[start:]
    if rest or first:
        yield rest


def _unpacked(path: Path, raw: IO[bytes]) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if path.suffix == ".xz":
        return cast(IO[bytes], lzma.LZMAFile(raw))
    return raw
