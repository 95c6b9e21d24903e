"""What an unfinished build has on the disk, and how far it is.

``folder/partial/`` holds ``inputs.json``, what is built from what, written once, and ``state.json``, replaced after
every step that is safely on the disk. The other files may be longer than the state says: that part is made again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from foretoken.core.errors import ForetokenError
from foretoken.drafters.background import INDEX, META, ROWS

PARTIAL = "partial"
INPUTS, STATE, TOKENS, COUNTS = "inputs.json", "state.json", "tokens.bin", "counts.bin"
NEW = ".new"  # of a file that is about to replace another
OURS = {META, INDEX, ROWS, META + NEW, PARTIAL}
OURS_WITHIN = {INPUTS, STATE, INPUTS + NEW, STATE + NEW, TOKENS, COUNTS, ROWS, INDEX}


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


def begin(folder: Path, settings: dict[str, Any], force: bool) -> State:
    """The state of the unfinished build in ``folder``, or of a new one.

    Args:
        folder: Where the store will be.
        settings: What is built from what; only the same build can go on.
        force: Drop an unfinished build that is another, and begin beside a finished store, to replace it.

    Raises:
        ForetokenError: If the folder holds something else, or without ``force`` a store or another unfinished build.
    """
    refuse_others(folder)
    partial = folder / PARTIAL
    if (folder / META).exists() and not (partial / INPUTS).exists() and not force:
        raise ForetokenError(f"{str(folder)!r} holds a store already: give another folder, or replace it by force.")
    if force and (partial / INPUTS).exists() and json.loads((partial / INPUTS).read_bytes()) != settings:
        forget(folder)
    if not (partial / INPUTS).exists():
        partial.mkdir(parents=True, exist_ok=True)
        (partial / STATE).unlink(missing_ok=True)
        write_json(partial / INPUTS, settings)
    begun = json.loads((partial / INPUTS).read_bytes())
    if begun != settings:
        raise ForetokenError(
            f"The folder {str(folder)!r} holds an unfinished build with {_difference(begun, settings)}: repeat "
            "what began it, or begin anew by force."
        )
    if not (partial / STATE).exists():
        return State()
    return State(**json.loads((partial / STATE).read_bytes()))


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
    if not others and (folder / META).exists():
        try:
            others = "index_bits" not in json.loads((folder / META).read_bytes())
        except (OSError, ValueError, TypeError):
            others = True
    if others:
        raise ForetokenError(f"{str(folder)!r} holds something else: give a new or an empty folder for the store.")


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
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= names


def _difference(begun: dict[str, Any], settings: dict[str, Any]) -> str:
    for name, words in (("fingerprint", "another tokenizer"), ("min_count", "another min_count")):
        if begun.get(name) != settings[name]:
            return words
    old: Sequence[Any] = begun.get("inputs", [])
    new: Sequence[Any] = settings["inputs"]
    if [name for name, _ in old] == [name for name, _ in new]:
        changed = next((name for (name, before), (_, after) in zip(old, new, strict=True) if before != after), None)
        if changed is not None:
            return f"another {changed!r}, which has changed since"
        return "another format"
    return "other files"
