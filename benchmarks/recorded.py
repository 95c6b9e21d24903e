"""Recorded answers and the package's corpus, as the benchmarks read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from foretoken.core.errors import ForetokenError
from foretoken.memory.corpus.general import general_background
from foretoken.memory.corpus.sources import answer
from foretoken.memory.fingerprint import fingerprint
from foretoken.ngrams.background import Background
from foretoken.replay.read import Reading, Trace, read_log
from foretoken.texts import open_lines
from foretoken.tokenizing import batch_encoder, load_tokenizer

NUM_TEXTS, MIN_TEXT = 6, 1000  # of a file for never-slower, and characters that a text has at least


def background_for(tokenizer: str) -> Background:
    """The corpus that comes with the package, in a tokenizer's tokens."""
    loaded = load_tokenizer(tokenizer)
    return general_background(batch_encoder(loaded), fingerprint(loaded))


def log_files(folders: Sequence[Path]) -> list[Path]:
    """The files of recorded answers in folders.

    Raises:
        ForetokenError: If a folder has none.
    """
    found: list[Path] = []
    for folder in folders:
        own = sorted(folder.glob("*.jsonl.gz"))
        if not own:
            raise ForetokenError(f"The folder {str(folder)!r} has no recorded answers: it has no file *.jsonl.gz.")
        found += own
    return sorted(found)


def read_sets(folders: Sequence[Path], tokenizer: str, limit: int) -> dict[str, list[Trace]]:
    """The first answers of every file.

    Raises:
        ForetokenError: If a folder has no file, a file cannot be read, or none has an answer.
    """
    files = log_files(folders)
    logs = {name: read_log(str(path), Reading(tokenizer, limit)) for name, path in _named(files).items()}
    sets = {name: log.traces for name, log in logs.items() if log.traces}
    if not sets:
        bad, short = sum(log.unusable for log in logs.values()), sum(log.short for log in logs.values())
        raise ForetokenError(f"There is no answer to time: {bad} lines are unusable, {short} answers are too short.")
    return sets


def read_texts(files: Sequence[Path]) -> dict[str, list[str]]:
    """The first long answers of every file, as text.

    Raises:
        ForetokenError: If a file cannot be read or has none.
    """
    texts = {name: list(islice(long_outputs(path), NUM_TEXTS)) for name, path in _named(files).items()}
    for name, found in texts.items():
        if not found:
            raise ForetokenError(f"The file {name!r} has no answer of {MIN_TEXT} characters: name another.")
    return texts


def long_outputs(path: Path) -> Iterator[str]:
    """The recorded answers that have text for a measurement; lines that are not such JSON are passed over."""
    with open_lines(path) as lines:
        for _, line, fault in lines:
            output = answer(line) if fault is None else None
            if output is not None and len(output) >= MIN_TEXT:
                yield output


def _named(files: Sequence[Path]) -> dict[str, Path]:
    """The files by name, by path where names come again."""
    times = Counter(path.name for path in dict.fromkeys(files))
    return {path.name if times[path.name] == 1 else str(path): path for path in files}
