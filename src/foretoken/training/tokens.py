"""The tokens of the training texts, on disk, with a part held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foretoken.core.errors import RequestError
from foretoken.files import writing
from foretoken.memory.corpus import File

Encode = Callable[[list[str]], list[list[int]]]

BLOCK = 512  # tokens that are trained on or held out together
HELD_OUT = 50  # of so many blocks one is held out
LEAST = BLOCK * HELD_OUT


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files of the data: those named, and all in the folders named, in order.

    Raises:
        ForetokenError: If a folder holds no file.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        if not inside:
            raise RequestError(f"The folder {str(path)!r} holds no file to train on.")
        found += inside
    return found


class TokenStream:
    """The tokens of some texts one after the other, memory-mapped: blocks to train on, and blocks held out.

    Args:
        folder: Where they are kept. They are made once for the same files and tokenizer.
        paths: Text files, folders of them, or .jsonl files with a "text" in each row; plain, .gz or .xz.
        encode: Makes tokens of texts.
        fingerprint: Of the tokenizer.
        end: The token that ends a document. None if there is none.

    Raises:
        ForetokenError: If a file cannot be read, or there are too few tokens.
    """

    def __init__(
        self, folder: Path, paths: Sequence[Path], encode: Encode, fingerprint: str, end: int | None = None
    ) -> None:
        files = [File(path) for path in files_of(paths)]
        self.bad: dict[str, list[int]] = {}
        key = hashlib.sha256(json.dumps([[f.name, *f.stamp] for f in files] + [fingerprint, end]).encode()).hexdigest()
        self.key = key[:16]
        path = folder / f"tokens-{self.key}.npy"
        if not path.exists():
            with writing(path, folders=True) as out:
                stream = np.fromiter(self._read(files, encode, end), np.uint32)
                np.save(out, stream)
        tokens: NDArray[np.uint32] = np.load(path, mmap_mode="r")
        if len(tokens) < LEAST:
            raise RequestError(f"The data has {len(tokens)} tokens: training needs {LEAST} or more.")
        self._tokens = tokens
        blocks = np.arange(len(tokens) // BLOCK)
        held = blocks % HELD_OUT == HELD_OUT - 1
        self._starts = {False: blocks[~held], True: blocks[held]}

    def __len__(self) -> int:
        return len(self._tokens)

    def windows(self, count: int, length: int, seed: Sequence[int], held_out: bool = False) -> NDArray[np.int64]:
        """Random windows [count, length], at most a block long, each within one block."""
        rng = np.random.default_rng(list(seed))
        blocks = self._starts[held_out]
        starts = rng.choice(blocks, count) * BLOCK + rng.integers(0, BLOCK - length + 1, count)
        return np.stack([self._tokens[start : start + length] for start in starts]).astype(np.int64)

    def _read(self, files: Sequence[File], encode: Encode, end: int | None) -> Iterator[int]:
        for file in files:
            pieces = 0
            for piece in file.pieces():
                if piece.first and pieces and end is not None:
                    yield end
                pieces += 1
                yield from encode([str(piece.content)])[0]
            if file.bad:
                self.bad[str(file.path)] = list(file.bad)
            if pieces and end is not None:
                yield end
