"""Compiled loops: they run whatever becomes of the files that keep them, and never from another source."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numba
import numpy as np
import pytest

import foretoken
from foretoken.memory.corpus import counts
from foretoken.ngrams import arrays, background, compiling, kernels

# Prints how often the code of a loop was found on the disk.
CODE = """
import numpy as np
from foretoken.memory.corpus import counts

counts.Table(16).add(np.array([1, 2, 3], np.uint32), 0, 0, 0, 2**64 - 1)
print(sum(counts._add.stats.cache_hits.values()))
"""
COMPILED, FOUND = 0, 1

# Prints what the code of every compiled function depends on.
DEFINITIONS = """
import importlib
import pkgutil

from numba.core.dispatcher import Dispatcher

import foretoken.memory.corpus
import foretoken.ngrams
from foretoken.ngrams.compiling import Kept, definition

for package in (foretoken.ngrams, foretoken.memory.corpus):
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if isinstance(value, Dispatcher) and value.__module__ == module.__name__ and isinstance(value._cache, Kept):
                print(definition(value._cache._function, value._cache._options))
"""


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


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def run(source: Path, kept: Path | None = None, **environment: str) -> int:
    """How often the code of a loop is found on the disk by modules that are loaded anew from ``source``.

    The loop, which counts for a corpus, hashes as another file says; its result is that of NumPy.

    Args:
        source: The package's parent.
        kept: ``NUMBA_CACHE_DIR``.
        environment: Other variables.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "CACHE_DIR", str(kept or ""))
        patch.setattr(compiling, "__file__", str(source / "foretoken" / "ngrams" / "compiling.py"))
        patch.delenv("XDG_CACHE_HOME")
        for name, value in environment.items():
            patch.setenv(name, value)
        loaded = []
        for name in (arrays.__name__, kernels.__name__, counts.__name__):
            path = source / f"{name.replace('.', '/')}.py"
            loaded.append(ModuleType(name))
            patch.setitem(sys.modules, name, loaded[-1])
            exec(compile(path.read_text(), path, "exec"), vars(loaded[-1]))
        new_arrays, _, new_counts = loaded
        table = new_counts.Table(16)
        table.add(np.array([1, 2, 3], np.uint32), 0, 0, 0, 2**64 - 1)
        patch.setattr(background, "extend_hashes", new_arrays.extend_hashes)
        expected = sum(int(hash_) for hashes in background.position_hashes([1, 2, 3]) for hash_ in hashes)
        assert sum(map(int, table.hashes[table.counts > 0])) == expected
        return sum(new_counts._add.stats.cache_hits.values())


def start(source: Path, kept: Path) -> subprocess.Popen[str]:
    """``CODE`` in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(source), "NUMBA_CACHE_DIR": str(kept)}
    return subprocess.Popen(
        [sys.executable, "-B", "-c", CODE], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_code_is_kept_for_the_next_process(source, tmp_path):
    for found in (COMPILED, FOUND):
        assert start(source, tmp_path / "kept").communicate() == (f"{found}\n", "")
    assert run(source, XDG_CACHE_HOME=str(tmp_path / "cache")) == COMPILED
    assert run(source, XDG_CACHE_HOME=str(tmp_path / "cache")) == FOUND


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs a place where no folder can be made")
def test_without_a_place_to_keep_it_code_is_compiled(source, tmp_path):
    (tmp_path / "file").write_text("no folder")
    before = sorted(tmp_path.iterdir())
    assert run(source, HOME="/dev/null") == COMPILED
    assert run(source, HOME="/dev/null", XDG_CACHE_HOME="relative") == COMPILED
    assert run(source, tmp_path / "file", HOME="/dev/null") == COMPILED
    assert sorted(tmp_path.iterdir()) == before


def test_on_a_full_disk_code_is_compiled_and_nothing_half_is_left(source, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    with file_size_limit(1000):
        assert run(source, kept) == COMPILED
        assert run(source, kept) == COMPILED
    assert files_in(kept) == []
    assert run(source, kept) == COMPILED
    assert run(source, kept) == FOUND


@pytest.mark.parametrize("damage", ["empty", "half", "other", "a bit"])
def test_damaged_files_are_made_anew(source, tmp_path, damage):
    kept = tmp_path / "kept"
    assert run(source, kept) == COMPILED
    assert files_in(kept)
    for path in files_in(kept):
        whole = path.read_bytes()
        middle = len(whole) // 2
        bit = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"empty": b"", "half": whole[:middle], "other": b"\x80\x04}." * 9, "a bit": bit}[damage])
    assert run(source, kept) == COMPILED
    assert run(source, kept) == FOUND


def test_a_file_that_cannot_be_read_or_replaced_is_passed_over(source, tmp_path):
    kept = tmp_path / "kept"
    assert run(source, kept) == COMPILED
    for path in files_in(kept):
        path.unlink()
        path.mkdir()
    assert run(source, kept) == COMPILED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("GOLDEN = np.uint64(0x9E3779B97F4A7C15)", "GOLDEN = np.uint64(0x9E3779B97F4A7C17)"),  # a constant
        ("return z ^ (z >> HALF)\n", "return z ^ (z << HALF)\n"),  # the code of a function
    ],
)
def test_what_comes_from_another_file_is_compiled_anew_once_it_changes(source, tmp_path, before, after):
    """The loops of ``counts.py`` hash as ``arrays.py`` says."""
    kept = tmp_path / "kept"
    assert run(source, kept) == COMPILED
    path = source / "foretoken" / "ngrams" / "arrays.py"
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))
    assert run(source, kept) == COMPILED
    assert run(source, kept) == FOUND
    path.write_text("# a comment\n" + text.replace(before, after))
    assert run(source, kept) == FOUND


def test_two_processes_at_once(source, tmp_path):
    for process in [start(source, tmp_path / "kept") for _ in range(2)]:
        out, err = process.communicate()
        assert int(out) in (COMPILED, FOUND) and err == ""
    assert start(source, tmp_path / "kept").communicate() == (f"{FOUND}\n", "")


def test_what_code_depends_on_is_written_alike_in_every_process():
    texts = []
    for seed in ("1", "2"):  # of the hashes by which sets are ordered
        env = {**os.environ, "PYTHONHASHSEED": seed}
        printed = subprocess.check_output([sys.executable, "-c", DEFINITIONS], env=env, text=True)
        texts.append(printed.splitlines())
    assert len(texts[0]) > 5
    assert len(set(texts[0])) == len(texts[0])
    assert texts[0] == texts[1]
    assert not any(" at 0x" in text for text in texts[0])  # where an object lies in memory
