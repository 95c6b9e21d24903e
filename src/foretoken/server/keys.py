"""API keys: who may ask, and whose namespace an answer belongs to."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from foretoken.core.errors import RequestError
from foretoken.server.errors import ApiError
from foretoken.texts import read_text

MAX_FILE = 1 << 20  # characters
LEAST_KEY = 16  # characters; what is shorter can be guessed
NAME = re.compile(r"[A-Za-z0-9.-]{1,64}")
ANYBODY = "default"  # who asks where no keys are needed


class ApiKeys:
    """Tells whose key was presented. Only digests are kept, so that no error and no dump of memory shows a key.

    Args:
        keys: The key of each name. Where there is none, everybody may ask, as ``ANYBODY``.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._digests = {name: _digest(key.encode()) for name, key in keys.items()}

    @property
    def are_needed(self) -> bool:
        """Whether a request needs one."""
        return bool(self._digests)

    def owner(self, authorization: bytes | None) -> str:
        """The name whose key the header ``Authorization: Bearer KEY`` has.

        The time that this takes depends neither on the key nor on whose it is: all digests are compared, each in
        constant time.

        Raises:
            ApiError: If the key is nobody's.
        """
        if not self.are_needed:
            return ANYBODY
        scheme, _, key = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            raise ApiError(401, 'There is no API key: send the header "Authorization: Bearer KEY".', "missing_api_key")
        digest = _digest(key.strip())
        found = [name for name, known in self._digests.items() if hmac.compare_digest(digest, known)]
        if not found:
            raise ApiError(401, "The API key is not known here.", "invalid_api_key")
        return found[0]


def read_keys(path: Path) -> dict[str, str]:
    """The keys of a file: on each line a name and a key, with spaces between; ``#`` begins a comment.

    Raises:
        ForetokenError: If it cannot be read, holds no key, or a line is something else. No message quotes a line.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(read_text(path, MAX_FILE).splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"Line {number} of {str(path)!r}"
        if len(words) != 2:
            raise RequestError(f"{where} is not a name and a key: write both, with a space between.")
        name, key = words
        if not NAME.fullmatch(name):
            raise RequestError(f"{where} has an unfit name: use letters, digits, dots and dashes, 64 at most.")
        if len(key) < LEAST_KEY or not key.isascii():
            raise RequestError(f"{where} has an unfit key: use at least {LEAST_KEY} ASCII characters.")
        if name in keys or key in keys.values():
            raise RequestError(f"{where} repeats a name or a key: each stands once.")
        keys[name] = key
    if not keys:
        raise RequestError(f"The file {str(path)!r} has no keys: write a name and a key on each line.")
    return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
