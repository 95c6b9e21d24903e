"""What an unfinished build has on the disk, and how far it is.

``folder/partial/`` holds ``inputs.json``, what is built from what, written once, and ``state.json``, replaced after
every step that is safely on the disk. The other files may be longer than the state says: that part is made again.
While a process builds it holds a lock on the folder, which ends with the process.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from foretoken.core.errors import ForetokenError
from foretoken.files import lock
from foretoken.ngrams.background import HEADER, INDEX, META, ROWS

PARTIAL = "partial"
INPUTS, STATE, TOKENS, COUNTS = "inputs.json", "state.json", "tokens.bin", "counts.bin"
NEW = ".new"  # of a file that is about to replace another
OURS = {META, INDEX, ROWS, META + NEW, PARTIAL}
OURS_WITHIN = {INPUTS, STATE, INPUTS + NEW, STATE + NEW, TOKENS, COUNTS, ROWS, INDEX}
FIRST = np.uint32(1 << 31)  # in TOKENS, set in the first token of a document
MAX_JSON = 1 << 24  # bytes that are read of a file
MAX_NUMBER = 1 << 62


@dataclass
class State:
    """How far a build is.

    Args:
        source: The source that is being read; all before it have been.
        pieces: How many of its pieces have been.
        documents: Documents begun.
        tokens: Tokens written.
        fresh: Whether the next token is the first of a document.
        bad: Lines passed over, by source.
        tokenized: Whether all sources have been read.
        buckets: Buckets of the finest index whose rows are written.
        rows: Rows written.
        counted: Whether all rows and the index are.
    """

    source: int = 0
    pieces: int = 0
    documents: int = 0
    tokens: int = 0
    fresh: bool = False
    bad: dict[str, list[int]] = field(default_factory=dict)
    tokenized: bool = False
    buckets: int = 0
    rows: int = 0
    counted: bool = False


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process that builds in ``folder``; where folders cannot be locked, that is taken for granted.

    Raises:
        ForetokenError: If another one builds there.
    """
    if sys.platform == "win32":  # which opens no folder
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not lock(handle):
            raise ForetokenError(
                f"Another process builds in the folder {str(folder)!r}: wait until it has ended, or give another "
                "folder."
            )
        yield
    finally:
        os.close(handle)


def begin(folder: Path, settings: dict[str, Any], force: bool) -> State:
    """The state of the unfinished build in ``folder``, or of a new one.

    Args:
        folder: Where the store will be.
        settings: What is built from what; only the same build can go on.
        force: Drop an unfinished build that is another or damaged, and begin beside a finished store, to replace it.

    Raises:
        ForetokenError: If the folder holds something else, or without ``force`` a store or an unfinished build that
            cannot go on.
    """
    refuse_others(folder)
    partial = folder / PARTIAL
    if (partial / INPUTS).exists():
        try:
            return _unfinished(folder, settings)
        except ForetokenError:
            if not force:
                raise
        forget(folder)
    elif (folder / META).exists() and not force:
        raise ForetokenError(f"{str(folder)!r} holds a store already: give another folder, or replace it by force.")
    partial.mkdir(parents=True, exist_ok=True)
    (partial / STATE).unlink(missing_ok=True)
    write_json(partial / INPUTS, settings)
    return State()


def _unfinished(folder: Path, settings: dict[str, Any]) -> State:
    """The state of the unfinished build in ``folder``.

    Raises:
        ForetokenError: If it is another build, or if it is damaged.
    """
    partial = folder / PARTIAL
    damaged = ForetokenError(
        f"The folder {str(folder)!r} holds an unfinished build that is damaged: begin anew by force."
    )
    begun = _read_json(partial / INPUTS)
    if not isinstance(begun, dict):
        raise damaged
    if begun != settings:
        raise ForetokenError(
            f"The folder {str(folder)!r} holds an unfinished build with {_difference(begun, settings)}: repeat "
            "what began it, or begin anew by force."
        )
    if not (partial / STATE).exists():
        return State()
    state = _state_of(_read_json(partial / STATE))
    if state is None or state.source >= max(1, len(settings["inputs"])) or not _is_on_disk(folder, state):
        raise damaged
    return state


def _state_of(value: Any) -> State | None:
    """The state that was written as this JSON value; None where it is none."""
    if not isinstance(value, dict) or not value.keys() <= asdict(State()).keys():
        return None
    state = State(**value)
    for name, default in asdict(State()).items():
        if type(getattr(state, name)) is not type(default):
            return None
    numbers = [state.source, state.pieces, state.documents, state.tokens, state.buckets, state.rows]
    for lines in state.bad.values():
        if not isinstance(lines, list):
            return None
        numbers += lines
    return state if all(type(number) is int and 0 <= number < MAX_NUMBER for number in numbers) else None


def _is_on_disk(folder: Path, state: State) -> bool:
    """Whether the files hold what the state says was written."""
    partial = folder / PARTIAL
    if state.counted:  # what is in place already is no longer in ``partial``
        return all((partial / name).exists() or (folder / name).exists() for name in (INDEX, ROWS))
    if (state.buckets or state.rows) and not state.tokenized:
        return False
    written = {TOKENS: 4 * state.tokens, COUNTS: 4 * state.buckets, ROWS: 8 * state.rows and HEADER + 8 * state.rows}
    return all(not size or _size(partial / name) >= size for name, size in written.items())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read_json(path: Path) -> Any:
    """What a file says; None where it is no JSON."""
    with path.open("rb") as file:
        try:
            return json.loads(file.read(MAX_JSON))
        except (ValueError, RecursionError):
            return None


def save(folder: Path, state: State) -> None:
    """Record what is safely on the disk."""
    write_json(folder / PARTIAL / STATE, asdict(state))


def forget(folder: Path) -> None:
    """Drop what an unfinished build left in ``folder``."""
    partial = folder / PARTIAL
    (partial / INPUTS).unlink()  # first: half of what was there is not taken for a build that can go on
    shutil.rmtree(partial)


def refuse_others(folder: Path) -> None:
    """Raise if ``folder`` holds anything but a store or an unfinished one.

    Raises:
        ForetokenError: In that case.
    """
    if not folder.exists():
        return
    within = folder / PARTIAL
    others = not _only(folder, OURS) or (within.exists() and not _only(within, OURS_WITHIN))
    if others or ((folder / META).exists() and not _is_store(folder)):
        raise ForetokenError(f"{str(folder)!r} holds something else: give a new or an empty folder for the store.")


def _is_store(folder: Path) -> bool:
    """Whether we made this ``meta.json``, which may be damaged."""
    meta = _read_json(folder / META)
    if isinstance(meta, dict) and "index_bits" in meta:
        return True
    return all(_begins_with(folder / name, b"\x93NUMPY") for name in (INDEX, ROWS))


def _begins_with(path: Path, start: bytes) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return file.read(len(start)) == start


def write_json(path: Path, value: Any) -> None:
    """Write a file that is complete at any moment."""
    new = path.with_name(path.name + NEW)
    with new.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        flush(file)
    os.replace(new, path)


def flush(file: IO[Any]) -> None:
    """Have the disk keep what was written, through a loss of power too."""
    file.flush()
    os.fsync(file.fileno())


def _only(folder: Path, names: set[str]) -> bool:
    """Whether all that is in a folder are files of these names and the folder ``PARTIAL``, none of them a link."""
    if not folder.is_dir():
        return False
    for path in folder.iterdir():
        kind = stat.S_IFDIR if path.name == PARTIAL else stat.S_IFREG
        if path.name not in names or stat.S_IFMT(path.lstat().st_mode) != kind:
            return False
    return True


def _difference(begun: dict[str, Any], settings: dict[str, Any]) -> str:
    for name, words in (("fingerprint", "another tokenizer"), ("min_count", "another min_count")):
        if begun.get(name) != settings[name]:
            return words
    old: Any = begun.get("inputs")
    new: Sequence[Any] = settings["inputs"]
    if isinstance(old, list) and len(old) == len(new):
        changed = [after[0] for before, after in zip(old, new, strict=True) if before != after]
        names = [before[0] if isinstance(before, list) and before else None for before in old]
        if changed and names == [name for name, _ in new]:
            return f"another {changed[0]!r}, which has changed since"
        if not changed:
            return "another format"
    return "other files"
