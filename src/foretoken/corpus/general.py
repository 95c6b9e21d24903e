"""The background corpus that comes with the package, cut by each model's own tokenizer once and kept in a cache."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from foretoken.core.errors import ForetokenError
from foretoken.corpus.build import build
from foretoken.corpus.tokens import Encode, Progress
from foretoken.drafters.background import META, Background

PACKED = files("foretoken.corpus") / "general.txt.xz"
SEPARATOR = "\0"  # between phrases


def phrases() -> list[str]:
    """The phrases of the corpus, as ``scripts/make_background.py`` learned them."""
    return lzma.decompress(PACKED.read_bytes()).decode().split(SEPARATOR)


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
        cache: Where stores are kept; ``default_cache()`` where None.
        progress: As ``build`` takes it; also called with "wait" while another process builds.

    Raises:
        ForetokenError: If the cache cannot be written, or the tokenizer is too big.
    """
    version = hashlib.sha256(PACKED.read_bytes()).hexdigest()[:8]
    folder = (cache or default_cache()) / f"general-{version}-{fingerprint}"
    try:
        if not _is_built(folder, fingerprint):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _only_one(folder.with_suffix(".lock"), progress):
                if not _is_built(folder, fingerprint):
                    _build(encode, fingerprint, folder, progress)
    except OSError as error:
        raise ForetokenError(
            f"The background corpus could not be kept in {str(folder.parent)!r}: {error.strerror}; make room there, or "
            "let it be written."
        ) from error
    return folder


def _build(encode: Encode, fingerprint: str, folder: Path, progress: Progress | None) -> None:
    """Go on with a build, or begin anew where what is there is damaged."""
    if (folder / META).exists():
        shutil.rmtree(folder)
    try:
        build(phrases(), encode, fingerprint, folder, progress=progress)
    except (ForetokenError, ValueError, TypeError, LookupError, AttributeError) as error:
        if isinstance(error.__cause__, OSError) or not folder.exists():
            raise
        shutil.rmtree(folder)
        build(phrases(), encode, fingerprint, folder, progress=progress)


def _is_built(folder: Path, fingerprint: str) -> bool:
    try:
        Background.open(folder, fingerprint)
    except ForetokenError:  # nothing there yet, or damaged
        return False
    return True


def default_cache() -> Path:
    """The folder for what can be made again: the user's cache."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "foretoken"


@contextmanager
def _only_one(lock: Path, progress: Progress | None) -> Iterator[None]:
    """Wait until this is the only process here; where files cannot be locked, it is taken for granted."""
    with lock.open("a") as file:
        while not _locked(file.fileno()):
            if progress is not None:
                progress("wait", 0, 1)
            time.sleep(0.05)
        yield


def _locked(handle: int) -> bool:
    """Lock a file till it is closed; False where another has."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows, and some network file systems
        pass
    return True
