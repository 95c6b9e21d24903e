"""The general corpus, which comes with the package: tokenized once for each tokenizer, and kept in the cache folder."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from foretoken.core.errors import ForetokenError
from foretoken.files import lock
from foretoken.memory.corpus.build import build
from foretoken.memory.corpus.partial import refuse_others
from foretoken.memory.corpus.tokens import Encode, Progress
from foretoken.ngrams.background import Background
from foretoken.paths import cache_folder

PACKED = files("foretoken.memory.corpus") / "general.txt.xz"
SEPARATOR = "\0"  # between phrases
MAX_WAIT = 600  # seconds for another process that builds the same


def phrases() -> list[str]:
    """The phrases of the corpus, as ``scripts/make_background.py`` learned them.

    Raises:
        ForetokenError: If the package's file is damaged or missing.
    """
    try:
        return lzma.decompress(_packed()).decode().split(SEPARATOR)
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise ForetokenError("The package's general corpus is damaged: install foretoken again.") from error


def _packed() -> bytes:
    try:
        return PACKED.read_bytes()
    except OSError as error:
        raise ForetokenError(
            f"The package's general corpus could not be read, {error.strerror}: install foretoken again."
        ) from error


def general_background(
    encode: Encode, fingerprint: str, cache: Path | None = None, progress: Progress | None = None
) -> Background:
    """The corpus in a model's tokens, opened; see ``general_folder``."""
    return Background.open(general_folder(encode, fingerprint, cache, progress), fingerprint)


def general_folder(
    encode: Encode, fingerprint: str, cache: Path | None = None, progress: Progress | None = None
) -> Path:
    """The corpus in a model's tokens, as a store on disk.

    The first call with a tokenizer takes some seconds; a call that was killed is gone on with by the next, and one that
    comes while another process builds the store waits for it.

    Args:
        encode: Makes tokens of texts.
        fingerprint: The tokenizer's.
        cache: Where stores are kept. If None, in ``cache_folder()``.
        progress: As ``build`` takes it; also called with "wait" while another process builds.

    Raises:
        ForetokenError: If the cache cannot be written, the tokenizer is too big, the package's file is damaged, or
            another process has been building for ``MAX_WAIT`` seconds.
    """
    version = hashlib.sha256(_packed()).hexdigest()[:8]
    folder = (cache or cache_folder()) / f"general-{version}-{fingerprint}"
    try:
        if not _is_built(folder, fingerprint):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _only_one(folder.with_suffix(".lock"), progress):
                if not _is_built(folder, fingerprint):
                    _build(encode, fingerprint, folder, progress)
    except OSError as error:
        raise ForetokenError(
            f"The background corpus could not be kept in {str(folder.parent)!r}: {error.strerror}; make room there, "
            "let it be written, or name another place by XDG_CACHE_HOME."
        ) from error
    return folder


def _build(encode: Encode, fingerprint: str, folder: Path, progress: Progress | None) -> None:
    """Continue a build, or start again if it is damaged: the folder's name says that it is ours."""
    texts = phrases()
    try:
        refuse_others(folder)
    except ForetokenError:
        shutil.rmtree(folder)
    build(texts, encode, fingerprint, folder, force=True, progress=progress)


def _is_built(folder: Path, fingerprint: str) -> bool:
    try:
        Background.open(folder, fingerprint)
    except ForetokenError:  # nothing there yet, or damaged
        return False
    return True


@contextmanager
def _only_one(path: Path, progress: Progress | None) -> Iterator[None]:
    """Wait until no other process holds the lock on the file ``path``, and hold it.

    Raises:
        ForetokenError: If another has held it for ``MAX_WAIT`` seconds.
    """
    give_up_at = time.monotonic() + MAX_WAIT
    with path.open("a") as file:
        while not lock(file.fileno()):
            if time.monotonic() > give_up_at:
                raise ForetokenError(
                    f"Another process has been building in {str(path.parent)!r} for {MAX_WAIT} seconds."
                )
            if progress is not None:
                progress("wait", 0, 1)
            time.sleep(0.05)
        yield
