"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from foretoken.core.errors import ForetokenError
from foretoken.files import PRIVATE, check_apart, check_writable, writing


def put(path: Path, content: bytes, mode: int | None = None) -> None:
    with writing(path, mode) as file:
        file.write(content)


def test_a_file_stands_where_it_was_asked_for_and_alone(tmp_path: Path):
    put(tmp_path / "report", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"report": b"new"}


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    (tmp_path / "report").write_bytes(b"old")
    with pytest.raises(RuntimeError), writing(tmp_path / "report") as file:
        file.write(b"half")
        raise RuntimeError
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"report": b"old"}


def test_a_link_is_written_through(tmp_path: Path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    put(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
def test_standard_output_keeps_what_a_shell_wrote_there_before(tmp_path: Path):
    code = "from pathlib import Path; from foretoken.files import writing\n"
    code += "with writing(Path('/dev/stdout')) as file: file.write(b'new')"
    with (tmp_path / "all").open("wb") as file:
        file.write(b"old ")
        file.flush()
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert (tmp_path / "all").read_bytes() == b"old new"


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
def test_a_pipe_is_written_directly(tmp_path: Path):
    read, write = os.pipe()
    (tmp_path / "out").symlink_to(f"/dev/fd/{write}")
    put(tmp_path / "out", b"new")
    os.close(write)
    assert os.read(read, 10) == b"new"
    os.close(read)
    assert (tmp_path / "out").is_symlink()


def test_permissions_are_those_asked_for_or_those_there_were(tmp_path: Path):
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    path = tmp_path / "report"
    before = os.umask(0o027)
    try:
        put(path, b"")
    finally:
        os.umask(before)
    assert mode(path) == 0o640
    path.chmod(0o664)
    put(path, b"")
    assert mode(path) == 0o664
    put(path, b"", PRIVATE)
    assert mode(path) == 0o600


def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path: Path):
    for path in (tmp_path / "missing" / "report", tmp_path):
        with pytest.raises(ForetokenError, match="could not be written"):
            check_writable(path)
        with pytest.raises(ForetokenError, match="could not be written"):
            put(path, b"new")
    check_writable(tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_device_is_one_sentence():
    with pytest.raises(ForetokenError, match="No space left"):
        put(Path("/dev/full"), b"new")


def test_folders_are_made_for_a_file_that_comes_to_be(tmp_path: Path):
    check_writable(tmp_path / "a" / "b" / "report", folders=True)
    with pytest.raises(RuntimeError), writing(tmp_path / "a" / "b" / "report", folders=True):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with writing(tmp_path / "a" / "b" / "report", folders=True) as file:
        file.write(b"new")
    assert (tmp_path / "a" / "b" / "report").read_bytes() == b"new"
    for bad in (tmp_path / "a" / "b" / "report" / "c" / "d", tmp_path / "c" / ("x" * 300), tmp_path / ("x" * 300)):
        with pytest.raises(ForetokenError, match="could not be written"):
            check_writable(bad, folders=True)
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", "report"}


def test_outputs_are_kept_apart_from_inputs_and_each_other(tmp_path: Path):
    (tmp_path / "log").write_bytes(b"")
    (tmp_path / "link").symlink_to("log")
    (tmp_path / "gone").symlink_to("report")
    os.link(tmp_path / "log", tmp_path / "hard")
    for name in ("log", "link", "hard"):
        with pytest.raises(ForetokenError, match="is read by this command"):
            check_apart([tmp_path / name], [tmp_path / "log"])
    with pytest.raises(ForetokenError, match="Two files would be written"):
        check_apart([tmp_path / "report", tmp_path / "gone"], [])
    check_apart([tmp_path / "report", tmp_path / "page"], [tmp_path / "log", tmp_path / "missing", tmp_path])
