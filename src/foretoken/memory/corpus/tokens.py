"""Stage 1: the documents as tokens, one file of uint32, in which a document's first token has the top bit set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretoken.core.errors import ForetokenError
from foretoken.memory.corpus.partial import FIRST, PARTIAL, TOKENS, State, flush, save
from foretoken.memory.corpus.sources import Piece, Source
from foretoken.ngrams.background import MAX_VOCABULARY

Encode = Callable[[list[str]], Sequence[Sequence[int]]]
Progress = Callable[[str, int, int], None]

BATCH = 1 << 21  # characters, or tokens where they come ready


def tokenize(folder: Path, sources: Sequence[Source], encode: Encode | None, state: State, progress: Progress) -> None:
    """Write the tokens of what is left of ``sources``.

    Raises:
        ForetokenError: If a source cannot be read, a document is neither text nor tokens, or a token does not fit a
            row.
    """
    total = sum(source.stamp[0] for source in sources)
    before = [0]
    for source in sources:
        before.append(before[-1] + source.stamp[0])
    path = folder / PARTIAL / TOKENS
    path.touch()
    with path.open("r+b") as file:
        file.truncate(4 * state.tokens)
        file.seek(4 * state.tokens)
        for batch in _batches(sources, state):
            for piece, ids in zip((piece for _, piece in batch), _encoded(batch, encode), strict=True):
                state.documents += piece.first
                state.fresh |= piece.first
                if len(ids):
                    ids[0] |= FIRST if state.fresh else np.uint32(0)
                    state.fresh = False
                    file.write(ids.tobytes())
                    state.tokens += len(ids)
            flush(file)
            _advance(state, sources, [number for number, _ in batch])
            save(folder, state)
            progress("read", before[state.source] + batch[-1][1].read, total)
    state.bad |= {source.name: list(source.bad) for source in sources[state.source :] if source.bad}
    state.tokenized = True
    save(folder, state)
    progress("read", total, total)


def _batches(sources: Sequence[Source], state: State) -> Iterator[list[tuple[int, Piece]]]:
    """What is left, each piece with the number of its source."""
    left = (
        (number, piece)
        for number in range(state.source, len(sources))
        for piece in islice(sources[number].pieces(), state.pieces if number == state.source else 0, None)
    )
    batch: list[tuple[int, Piece]] = []
    size = 0
    for number, piece in left:
        if not isinstance(piece.content, str):
            piece = replace(piece, content=_row_tokens(piece.content))
        batch.append((number, piece))
        size += len(piece.content)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(batch: list[tuple[int, Piece]], encode: Encode | None) -> Iterator[NDArray[np.uint32]]:
    texts = [piece.content for _, piece in batch if isinstance(piece.content, str)]
    if texts and encode is None:
        raise ForetokenError("The documents are text: give an encode that makes tokens of them.")
    encoded = iter(encode(texts)) if encode is not None and texts else iter(())
    for _, piece in batch:
        ids: Any = next(encoded) if isinstance(piece.content, str) else piece.content
        yield _row_tokens(ids)


def _row_tokens(ids: Any) -> NDArray[np.uint32]:
    """Tokens that fit a row.

    Raises:
        ForetokenError: If they are no whole numbers, or one is too large or negative.
    """
    try:
        tokens = np.asarray(ids)
    except ValueError:  # lists of several lengths
        tokens = np.asarray(ids, object)
    if tokens.dtype.kind not in "iu":
        tokens = np.asarray(ids, object)  # Python's whole numbers may be larger than NumPy's
    whole = tokens.dtype.kind in "iu" or all(type(token) is int for token in tokens.ravel())
    if tokens.ndim != 1 or not whole:
        raise ForetokenError("A document is neither text nor a list of tokens: give texts, or lists of whole numbers.")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < MAX_VOCABULARY:
        wrong = int(tokens.min()) if tokens.min() < 0 else int(tokens.max())
        raise ForetokenError(
            f"The token {wrong} does not fit a background corpus: use a tokenizer with at most {MAX_VOCABULARY} tokens."
        )
    return tokens.astype(np.uint32)


def _advance(state: State, sources: Sequence[Source], numbers: list[int]) -> None:
    """Count the pieces of a batch as read."""
    for number in numbers:
        if number != state.source:
            for passed in sources[state.source : number]:
                if passed.bad:
                    state.bad[passed.name] = list(passed.bad)
            state.source, state.pieces = number, 0
        state.pieces += 1
