"""Compiled loops: they run whatever becomes of the files that keep them, and never from another source."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

import foretoken
from foretoken.memory.corpus import counts
from foretoken.ngrams import kernels
from foretoken.ngrams.compiling import definition

# The sum of a table of corpus counts by compiled code and by NumPy, and how often the code was found on the disk.
CODE = """
import numpy as np
from foretoken.memory.corpus import counts
from foretoken.ngrams.background import position_hashes

table = counts.Table(16)
table.add(np.array([1, 2, 3], np.uint32), 0, 0, 0, 2**64 - 1)
expected = sum(int(hash_) for hashes in position_hashes([1, 2, 3]) for hash_ in hashes)
print(sum(map(int, table.hashes[table.counts > 0])) == expected, sum(counts._add.stats.cache_hits.values()))
"""
COMPILED, FOUND = "True 0", "True 1"


def run(source: Path, cwd: Path, limit: int | None = None, **environment: str) -> str:
    """What ``CODE`` prints, run from the package in ``source``; files may not be longer than ``limit`` bytes."""

    def set_limit() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    names = ("PATH", "LD_LIBRARY_PATH")
    env = {name: os.environ[name] for name in names if name in os.environ} | {"PYTHONPATH": str(source)} | environment
    process = subprocess.run(
        [sys.executable, "-B", "-c", CODE], env=env, cwd=cwd, capture_output=True, text=True, preexec_fn=set_limit
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return process.stdout.strip()


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of the package whose folder cannot be written into, even by the superuser."""
    shutil.copytree(
        Path(foretoken.__file__).parent,
        tmp_path / "source" / "foretoken",
        ignore=shutil.ignore_patterns("__pycache__", "models", "bench"),
    )
    (tmp_path / "source" / "foretoken" / "ngrams" / "__pycache__").write_text("no folder")
    return tmp_path / "source"


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_code_is_kept_for_the_next_process(source, tmp_path):
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "kept")) == COMPILED
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "kept")) == FOUND
    assert run(source, tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache")) == COMPILED
    assert run(source, tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache")) == FOUND


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs a place where no folder can be made")
def test_without_a_place_to_keep_it_code_is_compiled(source, tmp_path):
    (tmp_path / "file").write_text("no folder")
    before = sorted(tmp_path.iterdir())
    assert run(source, tmp_path, HOME="/dev/null") == COMPILED
    assert run(source, tmp_path, HOME="/dev/null", XDG_CACHE_HOME="relative") == COMPILED
    assert run(source, tmp_path, HOME="/dev/null", NUMBA_CACHE_DIR=str(tmp_path / "file")) == COMPILED
    assert sorted(tmp_path.iterdir()) == before


def test_on_a_full_disk_code_is_compiled_and_nothing_half_is_left(source, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    assert run(source, tmp_path, limit=1000, NUMBA_CACHE_DIR=str(kept)) == COMPILED
    assert run(source, tmp_path, limit=1000, NUMBA_CACHE_DIR=str(kept)) == COMPILED
    assert files_in(kept) == []
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(kept)) == COMPILED
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(kept)) == FOUND


@pytest.mark.parametrize("damage", ["empty", "half", "other", "a bit"])
def test_damaged_files_are_made_anew(source, tmp_path, damage):
    kept = tmp_path / "kept"
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(kept)) == COMPILED
    assert files_in(kept)
    for path in files_in(kept):
        whole = path.read_bytes()
        middle = len(whole) // 2
        bit = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"empty": b"", "half": whole[:middle], "other": b"\x80\x04}." * 9, "a bit": bit}[damage])
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(kept)) == COMPILED
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(kept)) == FOUND


def test_a_file_that_cannot_be_read_or_replaced_is_passed_over(source, tmp_path):
    kept = tmp_path / "kept"
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(kept)) == COMPILED
    for path in files_in(kept):
        path.unlink()
        path.mkdir()
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(kept)) == COMPILED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("GOLDEN = np.uint64(0x9E3779B97F4A7C15)", "GOLDEN = np.uint64(0x9E3779B97F4A7C17)"),  # a constant
        ("return z ^ (z >> HALF)\n", "return z ^ (z << HALF)\n"),  # the code of a function
    ],
)
def test_what_comes_from_another_file_is_compiled_anew_once_it_changes(source, tmp_path, before, after):
    """The loops of ``counts.py`` hash as ``kernels.py`` says."""
    kept = tmp_path / "kept"
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(kept)) == COMPILED
    path = source / "foretoken" / "ngrams" / "kernels.py"
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(kept)) == COMPILED
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(kept)) == FOUND
    path.write_text("# a comment\n" + text.replace(before, after))
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(kept)) == FOUND


def test_two_processes_at_once(source, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(source), "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    both = [
        subprocess.Popen([sys.executable, "-B", "-c", CODE], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate()
        assert (out.decode().strip() in (COMPILED, FOUND), err) == (True, b"")
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "kept")) == FOUND


def test_what_code_depends_on_is_written_alike_in_every_process():
    functions = [value for module in (kernels, counts) for value in vars(module).values()]
    definitions = [definition(function, {}) for function in functions if isinstance(function, Dispatcher)]
    assert len(definitions) > 10
    assert len(set(definitions)) == len(definitions)
    assert not any(" at 0x" in text for text in definitions)  # where an object lies in memory
