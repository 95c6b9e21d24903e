"""Texts from any files: plain, .gz or .xz, in the encoding that a byte order mark names, in bounded memory.

Without a mark a file is UTF-8. No encoding is guessed: a text that does not fit is refused, and of JSON lines the line.
"""

from __future__ import annotations

import codecs
import io
import lzma
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard, cast

from foretoken.core.errors import ForetokenError
from foretoken.files import is_special

MAX_LINE = 1 << 24  # characters of a line; more than an export's longest answer takes with the longest names
MAX_TEXT = 1 << 26  # characters of a text that is read as a whole
NUL = "NUL bytes, as UTF-16 without a byte order mark has"
BLOCK = 1 << 16  # bytes that are read at a time

# An archive may unpack to so many times its size, and to so many bytes in any case: a few kB can claim to be many GB.
MAX_RATIO, ALWAYS_UNPACKED = 250, 1 << 26
MAX_DICTIONARY = 1 << 28  # bytes that .xz may take to unpack; xz -9 takes 1 << 26

MARKS = (  # UTF-32 first, because its mark begins as that of UTF-16 does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
ARCHIVES: dict[str, tuple[bytes, Callable[[], Any]]] = {
    ".gz": (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    ".xz": (b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY)),
}

# As ``errors``: bytes that do not fit become half of a surrogate pair, which is no character.
MARK_WRONG = "foretoken.mark_wrong"
codecs.register_error(MARK_WRONG, lambda error: ("\udc80", cast(UnicodeDecodeError, error).end))


@contextmanager
def open_unpacked(path: Path) -> Iterator[io.BufferedReader[Any]]:
    """The bytes of a file. If it is a .gz or .xz, they are unpacked as they are read.

    Raises:
        ForetokenError: If the file cannot be read, at once or in the block: for want of permission, because it is
            damaged, or because it unpacks to far more than its size.
    """
    try:
        with io.BufferedReader(io.FileIO(path), BLOCK) as file:
            if path.suffix not in ARCHIVES:
                yield file
                return
            magic, decoder = ARCHIVES[path.suffix]
            if not file.peek(len(magic)).startswith(magic):
                raise _unreadable(path, f"it is no {path.suffix} archive")
            with io.BufferedReader(_Unpacked(path, file, decoder), BLOCK) as unpacked:
                yield unpacked
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _unreadable(path, "it is damaged or cut off; fetch it again, or leave it out") from error


def read_bytes(path: Path, most: int) -> bytes:
    """All bytes of a file, unpacked.

    Raises:
        ForetokenError: As ``open_unpacked`` does, and if there are more than ``most``.
    """
    with open_unpacked(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise _unreadable(path, f"it has more than {most} bytes")
    return content


@contextmanager
def open_text(path: Path, errors: str = "strict") -> Iterator[io.TextIOWrapper]:
    """The text of a file, its line ends as they are.

    Args:
        path: The file; .gz and .xz are unpacked.
        errors: What becomes of bytes that do not fit the encoding, as ``bytes.decode`` takes it; "strict" refuses them.

    Raises:
        ForetokenError: As ``open_unpacked`` does, and if the file is not text of its encoding.
    """
    with open_unpacked(path) as stream:
        encoding = encoding_of(stream.peek(4))
        try:
            with io.TextIOWrapper(stream, encoding, errors, newline="\n") as text:
                yield text
        except UnicodeDecodeError as error:
            name = encoding.removesuffix("-sig").upper()
            raise _unreadable(path, f"it is not {name} text; save it as UTF-8, or leave it out") from error


def is_text(value: object) -> TypeGuard[str]:
    """Whether it is a string of whole characters, without half of a surrogate pair, so that UTF-8 can hold it."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def encoding_of(head: bytes) -> str:
    """The encoding of a text that begins so: what its byte order mark names, or UTF-8."""
    return next((name for mark, name in MARKS if head.startswith(mark)), "utf-8")


def blocks(path: Path, text: io.TextIOWrapper, size: int) -> Iterator[str]:
    """The text from here on, about ``size`` characters at a time.

    Raises:
        ForetokenError: If it holds a NUL, which no text does.
    """
    while block := text.read(size):
        if "\0" in block:
            raise _unreadable(path, f"it has {NUL}; save it as UTF-8, or leave it out")
        yield block


def read_text(path: Path, most: int = MAX_TEXT) -> str:
    """The whole text of a file, its line ends as they are.

    Raises:
        ForetokenError: If it cannot be read, is no text, or has more than ``most`` characters.
    """
    with open_text(path) as text:
        content = next(blocks(path, text, most + 1), "")
    if len(content) > most:
        raise _unreadable(path, f"it has more than {most} characters")
    return content


@contextmanager
def open_lines(path: Path) -> Iterator[Lines]:
    """The lines of a file; one that does not fit the encoding, or is too long, concerns only itself.

    Raises:
        ForetokenError: As ``open_text`` does.
    """
    with open_text(path, MARK_WRONG) as text:
        yield Lines(text)


class Lines:
    """Iterates over a text's lines that are not blank: the number from 1, the line, and why it cannot be used or None.

    Args:
        text: As ``open_text`` gives it with ``MARK_WRONG``.
    """

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text

    @property
    def position(self) -> int:
        """How many bytes of the file have been read."""
        return position(self._text)

    def __iter__(self) -> Iterator[tuple[int, str, str | None]]:
        number = 0
        while line := self._text.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE and not line.endswith("\n"):
                while (rest := self._text.readline(MAX_LINE)) and not rest.endswith("\n"):
                    pass
                yield number, "", f"it has more than {MAX_LINE} characters"
            elif not line.isspace():
                yield number, line, self._fault(line)

    def _fault(self, line: str) -> str | None:
        if "\0" in line:
            return f"it has {NUL}"
        if not is_text(line):
            return f"it is not {self._text.encoding.removesuffix('-sig').upper()} text"
        return None


def position(text: io.TextIOWrapper) -> int:
    """How many bytes of the file have been read."""
    stream = cast("io.BufferedReader[Any]", text.buffer)
    return stream.raw.num_packed if isinstance(stream.raw, _Unpacked) else stream.tell()


@contextmanager
def readable_again(path: Path) -> Iterator[Path]:
    """The path of a file, or of a private copy of what can be read only once or only by this process: a pipe.

    Raises:
        ForetokenError: If it cannot be read, or is a device.
    """
    if not is_special(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        try:
            with path.open("rb") as source, copy.open("wb") as target:
                if stat.S_ISCHR(os.fstat(source.fileno()).st_mode):
                    raise _unreadable(path, "it is a device; give a file or a pipe")
                shutil.copyfileobj(source, target, BLOCK)
        except OSError as error:
            raise _unreadable(path, error.strerror or str(error)) from error
        yield copy


def _unreadable(path: Path, reason: str) -> ForetokenError:
    return ForetokenError(f"The file {str(path)!r} could not be read: {reason.rstrip('.')}.")


class _Unpacked(io.RawIOBase):
    """What an archive holds, its members one after the other, no more of it at a time than is asked for.

    Args:
        path: Names it in errors.
        packed: The archive.
        decoder: Makes what unpacks a member, of zlib or lzma.
    """

    def __init__(self, path: Path, packed: io.BufferedReader[Any], decoder: Callable[[], Any]) -> None:
        self.num_packed = self.num_unpacked = 0
        self._path, self._packed, self._new = path, packed, decoder
        self._decoder = decoder()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``; less of it only at the end.

        Raises:
            EOFError: If the archive is cut off.
            ForetokenError: If it unpacks to too much.
        """
        filled = 0
        while filled < len(buffer) and (piece := self._piece(len(buffer) - filled)):
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        self.num_unpacked += filled
        if self.num_unpacked > max(ALWAYS_UNPACKED, MAX_RATIO * self.num_packed):
            raise _unreadable(
                self._path, f"it unpacks to more than {MAX_RATIO} times its size; if you know it, unpack it yourself"
            )
        return filled

    def _piece(self, size: int) -> bytes:
        """The next bytes, at most ``size``; none at the end."""
        more = getattr(self._decoder, "unconsumed_tail", b"")  # zlib's holds none of what it was not asked for
        while True:
            if self._decoder.eof:
                more = self._next_member()
                if not more:
                    return b""
                self._decoder = self._new()
            piece: bytes = self._decoder.decompress(more, size)
            if piece:
                return piece
            if not self._decoder.eof:
                more = self._read()
                if not more:
                    raise EOFError

    def _next_member(self) -> bytes:
        """The beginning of the next member, after zeros that may fill up; nothing where there is none."""
        rest: bytes = self._decoder.unused_data.lstrip(b"\0")
        while not rest and (more := self._read()):
            rest = more.lstrip(b"\0")
        return rest

    def _read(self) -> bytes:
        more = self._packed.read1(BLOCK)
        self.num_packed += len(more)
        return more
