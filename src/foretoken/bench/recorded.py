"""Recorded answers and the package's corpus, as the benchmarks read them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from foretoken.corpus.general import general_background
from foretoken.drafters.background import Background
from foretoken.fingerprint import fingerprint
from foretoken.replay.read import Reading, Trace, read_log
from foretoken.tokenizing import batch_encoder, load_tokenizer

NUM_TEXTS, MIN_TEXT = 6, 1000  # of a file for never-slower, and characters that a text has at least


def background_for(tokenizer: str) -> Background:
    """The corpus that comes with the package, in a tokenizer's tokens."""
    loaded = load_tokenizer(tokenizer)
    return general_background(batch_encoder(loaded), fingerprint(loaded))


def read_sets(folders: Sequence[Path], tokenizer: str, limit: int) -> dict[str, list[Trace]]:
    """The first answers of every file."""
    files = sorted(path for folder in folders for path in folder.glob("*.jsonl.gz"))
    return {path.name: read_log(str(path), Reading(tokenizer, limit)).traces for path in files}


def read_texts(files: Sequence[Path]) -> dict[str, list[str]]:
    """The first long answers of every file, as text."""
    return {path.name: list(islice(long_outputs(path), NUM_TEXTS)) for path in files}


def long_outputs(path: Path) -> Iterator[str]:
    """The recorded answers that have text for a measurement."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from (output for line in lines if len(output := json.loads(line)["output"]) >= MIN_TEXT)
