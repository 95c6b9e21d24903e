"""Compiled loops: they run whatever becomes of the files that keep them, and never from another source."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from numba.core.dispatcher import Dispatcher

import foretoken
from foretoken.memory.corpus import counts
from foretoken.ngrams import kernels

# 17 is the sixth of the eight steps of ``few``; and how often the code was found on the disk.
CODE = "from foretoken.drafters import kernels; print(kernels.few(17), sum(kernels.few.stats.cache_hits.values()))"
COMPILED, FOUND = "6 0", "6 1"


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
    (tmp_path / "source" / "foretoken" / "drafters" / "__pycache__").write_text("no folder")
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


def test_a_changed_source_is_compiled_anew(source, tmp_path):
    kept = tmp_path / "kept"
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(kept)) == COMPILED
    path = source / "foretoken" / "drafters" / "kernels.py"
    text = path.read_text()
    assert "    return 7\n" in text and "(6, 48)" in text
    path.write_text(text.replace("(6, 48)", "(5, 48)"))
    assert run(source, tmp_path, NUMBA_CACHE_DIR=str(kept)) == "5 0"


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


@cache
def statements(module: ModuleType) -> list[ast.stmt]:
    return ast.parse(inspect.getsource(module)).body


def origins(module: ModuleType, name: str, seen: set[tuple[str, str]]) -> set[str]:
    """The files of the package that a name of a module, and all that its definition reads, comes from."""
    if name == "compiled" or (module.__name__, name) in seen:  # how it is compiled is no part of the code
        return set()
    seen.add((module.__name__, name))
    for statement in statements(module):
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("foretoken"):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    found = getattr(module, name)
                    if isinstance(found, ModuleType):
                        return {Path(found.__file__ or "").name}
                    return origins(importlib.import_module(statement.module or ""), alias.name, seen)
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
            if statement.name == name:
                return within(module, statement.body, seen)
        elif isinstance(statement, ast.Assign):
            targets = {
                node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)
            }
            if name in targets:
                return within(module, [statement.value], seen)
    return set()  # Python's, or of another package


def within(module: ModuleType, nodes: Sequence[ast.AST], seen: set[tuple[str, str]]) -> set[str]:
    names = {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}
    return {Path(module.__file__ or "").name}.union(*(origins(module, name, seen) for name in names))


@pytest.mark.parametrize(
    ("module", "files"),
    [(kernels, {"kernels.py"}), (counts, {"counts.py", "partial.py", "background.py", "kernels.py"})],
)
def test_all_that_compiled_code_reads_comes_from_the_files_that_it_is_kept_for(module, files):
    functions = [name for name, value in vars(module).items() if isinstance(value, Dispatcher)]
    assert len(functions) > 3
    for name in functions:
        assert origins(module, name, set()) <= files
