"""Documents, from files or from memory, in pieces small enough to be tokenized one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Protocol

from numpy.typing import NDArray

from foretoken.core.errors import ForetokenError
from foretoken.texts import blocks, open_lines, open_text, position

MAX_BAD = 1_000_000  # lines of a file that may be passed over; their numbers are kept
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
    """A file: JSON lines with ``output`` or ``text``, or else one document of text; plain, .gz or .xz.

    The text is UTF-8, or what the file's byte order mark says.

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
        if S_ISDIR(stat.st_mode):
            raise ForetokenError(f"{str(path)!r} is not a file: give files, {str(path / '*')!r} for those of a folder.")
        if not S_ISREG(stat.st_mode):
            raise ForetokenError(
                f"{str(path)!r} is not a file: save what it gives to one, so that a build that was stopped can go on."
            )
        self.stamp = [stat.st_size, stat.st_mtime_ns]

    def pieces(self) -> Iterator[Piece]:
        self.bad.clear()
        name = self.path.name.removesuffix(".gz").removesuffix(".xz")
        yield from self._lines() if name.endswith(".jsonl") else self._text()

    def _text(self) -> Iterator[Piece]:
        with open_text(self.path) as text:
            for i, piece in enumerate(cut(blocks(self.path, text, PIECE))):
                yield Piece(piece, i == 0, position(text))

    def _lines(self) -> Iterator[Piece]:
        with open_lines(self.path) as lines:
            for number, line, fault in lines:
                document = answer(line) if fault is None else None
                if document is None:
                    self._pass_over(number)
                    continue
                for i, piece in enumerate(cut([document])):
                    yield Piece(piece, i == 0, lines.position)

    def _pass_over(self, number: int) -> None:
        self.bad.append(number)
        if len(self.bad) > MAX_BAD:
            raise ForetokenError(
                f"More than {MAX_BAD} lines of {str(self.path)!r} are not JSON with output or text: leave it out."
            )


def answer(line: str) -> str | None:
    """The ``output`` of a row of JSON, its ``text`` where there is no output or null; None where there is neither."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    text = row.get("text") if row.get("output") is None else row["output"]
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
