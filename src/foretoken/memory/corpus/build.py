"""The whole build: both stages, then the finished files put in place."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from foretoken.core.errors import ForetokenError
from foretoken.core.numbers import whole
from foretoken.memory.corpus.partial import PARTIAL, State, alone, begin, forget, refuse_others, write_json
from foretoken.memory.corpus.sources import Documents, Source, Tokens
from foretoken.memory.corpus.tokens import Encode, Progress, tokenize
from foretoken.ngrams.background import FORMAT, INDEX, META, ORDERS, ROWS, TOP, Background, is_fingerprint

MEMORY = 1 << 30
MAX_COUNT = (1 << 32) - 1  # the most that a successor can be counted
MAX_MEMORY = 1 << 60


def build(
    documents: Iterable[str | Tokens],
    encode: Encode | None,
    fingerprint: str,
    folder: str | Path,
    *,
    min_count: int = 1,
    memory: int = MEMORY,
    force: bool = False,
    progress: Progress | None = None,
) -> State:
    """Build a background corpus from documents at hand; see ``build_from``.

    To go on with a build that was stopped, give the same documents from the first one on.
    """
    return build_from(
        [Documents(documents)],
        encode,
        fingerprint,
        folder,
        min_count=min_count,
        memory=memory,
        force=force,
        progress=progress,
    )


def build_from(
    sources: Sequence[Source],
    encode: Encode | None,
    fingerprint: str,
    folder: str | Path,
    *,
    min_count: int = 1,
    memory: int = MEMORY,
    force: bool = False,
    progress: Progress | None = None,
) -> State:
    """Build a background corpus in ``folder``, or go on with the build that was stopped there.

    Args:
        sources: Where the documents come from.
        encode: Makes tokens of a list of texts; None where the documents are tokens.
        fingerprint: The tokenizer's, which the store will be opened with.
        folder: New, empty, or one in which this very build was stopped.
        min_count: Successors seen less often are dropped; 1 to 2**32 - 1.
        memory: Most bytes that counting takes, about; more is faster where the corpus is big.
        force: Replace a store that is there, at the end; drop an unfinished build that is another or damaged.
        progress: Called with "read", bytes, all bytes; then with "count", parts, all parts.

    Returns:
        What was read and written.

    Raises:
        ForetokenError: If a source cannot be read, the folder holds something else or another unfinished build, another
            process builds there, the disk is full, or an argument has no such value.
    """
    min_count = whole("min_count", min_count, 1, MAX_COUNT)
    memory = whole("memory", memory, 1, MAX_MEMORY)
    if not is_fingerprint(fingerprint):
        raise ForetokenError(f"The fingerprint is {fingerprint!r:.200}: give what foretoken.memory.fingerprint says.")
    folder = Path(folder)
    progress = progress or (lambda stage, done, total: None)
    inputs = [[source.name, source.stamp] for source in sources]
    settings = {"format": FORMAT, "fingerprint": fingerprint, "min_count": min_count, "inputs": inputs}
    try:
        refuse_others(folder)  # before the folder is made
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            return _build(sources, encode, folder, settings, memory, force, progress)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full: make room" if full else f"{error.strerror or error}: mend that"
        raise ForetokenError(
            f"The store {str(folder)!r} could not be written, {reason}, and run the same again, which goes on where it "
            "stopped."
        ) from error
    except MemoryError as error:
        raise ForetokenError(f"There are no {memory} bytes of memory left: let counting take less.") from error


def _build(
    sources: Sequence[Source],
    encode: Encode | None,
    folder: Path,
    settings: dict[str, Any],
    memory: int,
    force: bool,
    progress: Progress,
) -> State:
    state = begin(folder, settings, force)
    if not state.tokenized:
        tokenize(folder, sources, encode, state, progress)
    min_count = settings["min_count"]
    if not state.counted:
        from foretoken.memory.corpus.counts import count  # only now: numba takes time to import

        count(folder, state, min_count, memory, progress)
    if not state.rows:
        forget(folder)
        lines = sum(map(len, state.bad.values()))
        passed = f" ({lines} lines were passed over, since they are not JSON with output or text)" if lines else ""
        raise ForetokenError(
            f"Nothing in the documents{passed} is followed at least {min_count} times by the same: give more text, "
            "or a lower min_count."
        )
    _put_in_place(folder, state, settings)
    return state


def _put_in_place(folder: Path, state: State, settings: dict[str, Any]) -> None:
    """Move the finished files; what was moved before the last one was stopped is no longer in ``partial``."""
    from foretoken.memory.corpus.counts import index_bits  # only now: numba takes time to import

    partial = folder / PARTIAL
    for name in (INDEX, ROWS):
        if (partial / name).exists():
            (folder / META).unlink(missing_ok=True)  # of a store that is being replaced
            os.replace(partial / name, folder / name)
    meta = {
        "format": FORMAT,
        "fingerprint": settings["fingerprint"],
        "orders": ORDERS,
        "top": TOP,
        "min_count": settings["min_count"],
        "index_bits": index_bits(state.rows),
        "documents": state.documents,
        "tokens": state.tokens,
        "rows": state.rows,
    }
    write_json(folder / META, meta)
    try:
        Background.open(folder)
    except ForetokenError:  # an unfinished build that is damaged: the next one begins anew
        (folder / META).unlink()
        forget(folder)
        raise
    forget(folder)
