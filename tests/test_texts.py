"""Texts from files of any origin."""

from __future__ import annotations

import gzip
import lzma
import os
import threading
from pathlib import Path

import pytest

from foretoken import texts
from foretoken.core.errors import ForetokenError
from foretoken.texts import open_lines, open_unpacked, read_bytes, read_text, readable_again

TEXT = 'Gr\u00fc\u00dfe {"\u7ffb\u8b6f": "\U0001f600"}\r\nzwei\n'
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")  # the last two write a byte order mark
BIG_ENDIAN = [(b"\xfe\xff", "utf-16-be"), (b"\0\0\xfe\xff", "utf-32-be")]


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def lines_of(path: Path) -> list[tuple[int, str, str | None]]:
    with open_lines(path) as lines:
        return list(lines)


@pytest.mark.parametrize(("pack", "end"), [(bytes, ""), (gzip.compress, ".gz"), (lzma.compress, ".xz")])
def test_a_text_is_read_by_its_byte_order_mark(tmp_path, pack, end):
    for content in [TEXT.encode(name) for name in ENCODINGS] + [mark + TEXT.encode(name) for mark, name in BIG_ENDIAN]:
        path = put(tmp_path / f"text{end}", pack(content))
        assert read_text(path) == TEXT
        assert [line for _, line, fault in lines_of(path) if fault is None] == TEXT.splitlines(keepends=True)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "latin-1", "cp1252"])
def test_no_encoding_is_guessed(tmp_path, encoding):
    path = put(tmp_path / "text", "Gr\u00fc\u00dfe\nzw\u00f6lf\n".encode(encoding))
    with pytest.raises(ForetokenError, match=r"could not be read: it (has NUL bytes|is not UTF-8 text)"):
        read_text(path)
    assert all(fault is not None for _, _, fault in lines_of(path))


def test_a_bad_line_concerns_only_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "MAX_LINE", 8)
    path = put(tmp_path / "text", b"good\n\n\xff\xfe\n" + b"x" * 100 + b"\na\0b\n\xed\xa0\x80\n" + "ü\n".encode())
    found = lines_of(path)
    assert [(number, fault is None) for number, _, fault in found] == [
        (1, True),
        (3, False),
        (4, False),
        (5, False),
        (6, False),
        (7, True),
    ]
    assert "more than 8 characters" in found[2][2] and found[-1][1] == "ü\n"
    assert [fault for *_, fault in lines_of(put(path, "a\nb".encode("utf-16")[:-1]))] == [None, "it is not UTF-16 text"]


@pytest.mark.parametrize(("pack", "end"), [(gzip.compress, ".gz"), (lzma.compress, ".xz")])
def test_members_come_one_after_the_other(tmp_path, pack, end):
    parts = [b"", b"a", b"bc\n" * 50_000, b"", b"d"]
    path = put(tmp_path / f"text{end}", b"".join(pack(part) + b"\0" * 4 for part in parts))
    assert read_bytes(path, 1 << 20) == b"".join(parts)
    with open_unpacked(path) as stream:
        assert b"".join(iter(lambda: stream.read(7), b"")) == b"".join(parts)


@pytest.mark.parametrize(("pack", "end"), [(gzip.compress, ".gz"), (lzma.compress, ".xz")])
def test_what_is_no_whole_archive_is_refused(tmp_path, pack, end):
    whole = pack(b"some text that is packed")
    bad = [b"", b"plain text", whole[:3], whole[:-1], whole[:-5], whole + b"more", whole[:20] + b"\xff" + whole[21:]]
    for content in bad:
        with pytest.raises(ForetokenError, match="could not be read: it is"):
            read_text(put(tmp_path / f"text{end}", content))


@pytest.mark.parametrize(("pack", "end"), [(gzip.compress, ".gz"), (lzma.compress, ".xz")])
def test_an_archive_that_claims_far_more_than_its_size_is_refused(tmp_path, monkeypatch, pack, end):
    monkeypatch.setattr(texts, "ALWAYS_UNPACKED", 1 << 20)
    path = put(tmp_path / f"text{end}", pack(b"x\n" * (1 << 21)))
    assert path.stat().st_size * 250 < 1 << 22
    for read in (read_text, lines_of):
        with pytest.raises(ForetokenError, match="unpacks to more than 250 times its size"):
            read(path)
    monkeypatch.setattr(texts, "ALWAYS_UNPACKED", 1 << 22)
    assert len(read_text(path)) == 1 << 22


def test_an_xz_that_needs_much_memory_is_refused(tmp_path, monkeypatch):
    path = put(tmp_path / "text.xz", lzma.compress(b"x", preset=6))  # with a dictionary of 8 MiB
    assert read_text(path) == "x"
    monkeypatch.setattr(texts, "MAX_DICTIONARY", 1 << 22)
    with pytest.raises(ForetokenError, match="could not be read"):
        read_text(path)


def test_so_much_is_read_and_no_more(tmp_path):
    assert read_text(put(tmp_path / "text", b"x" * 9), 9) == "x" * 9
    for read in (read_text, read_bytes):
        with pytest.raises(ForetokenError, match="it has more than 8"):
            read(tmp_path / "text", 8)


def test_a_pipe_is_read_once_and_a_file_where_it_is(tmp_path):
    with readable_again(put(tmp_path / "file", b"x")) as path:
        assert path == tmp_path / "file"
    pipe = tmp_path / "log.jsonl.gz"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[b"some bytes"])
    writer.start()
    with readable_again(pipe) as copy:
        assert [copy.read_bytes(), copy.read_bytes(), copy.name] == [b"some bytes", b"some bytes", pipe.name]
    writer.join()
    assert not copy.exists()


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_a_device_without_an_end_is_refused():
    with pytest.raises(ForetokenError, match="it is a device"), readable_again(Path("/dev/zero")):
        pass
    with pytest.raises(ForetokenError, match="more than 100 bytes"):
        read_bytes(Path("/dev/zero"), 100)
