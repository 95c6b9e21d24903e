"""What was computed of the beginnings of prompts, kept so that a later prompt that begins alike is read sooner.

A prompt is read in blocks of ``BLOCK`` tokens. What a model computes of a block depends on the block and on what stands
before it, and each block has a forward of its own, of the same shape in every prompt. So what is kept is what reading
it again would give, in every bit. What an answer's own forwards computed is not: they are of other shapes.
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

BLOCK = 512  # tokens; with fewer, long prompts take longer to read, and with more, more is read again


class Kept(NamedTuple):
    """What was computed of a block.

    Args:
        states: The engine's own.
        nbytes: The memory that they take.
    """

    states: Any
    nbytes: int


class Prefixes:
    """The blocks of all namespaces of a model. Those not used for longest are forgotten beyond a number of bytes.

    Args:
        max_bytes: The most that they may take together. With 0 none is kept, and prompts are read as if some were.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.num_hits = self.num_asked = 0  # tokens that were not read again, and tokens of all prompts
        self._blocks: OrderedDict[bytes, Kept] = OrderedDict()  # by a digest of the namespace and all tokens so far
        self._lock = threading.Lock()

    def of(self, namespace: str | None) -> Prefix:
        """The blocks of a namespace. If None, they are not kept."""
        return Prefix(None if namespace is None else self, namespace or "")

    def find(self, keys: Sequence[bytes]) -> list[Any]:
        """The states of the first blocks, as far as they are kept."""
        with self._lock:
            found = []
            for key in keys:
                if key not in self._blocks:
                    break
                found.append(self._blocks[key].states)
            for key in reversed(keys[: len(found)]):  # a block is of no use without those before it: they go last
                self._blocks.move_to_end(key)
            return found

    def add(self, key: bytes, kept: Kept) -> None:
        """Keep a block."""
        with self._lock:
            if key in self._blocks or kept.nbytes > self.max_bytes:
                return
            self._blocks[key] = kept
            self.nbytes += kept.nbytes
            while self.nbytes > self.max_bytes:
                _, oldest = self._blocks.popitem(last=False)
                self.nbytes -= oldest.nbytes

    def count(self, num_hits: int, num_tokens: int) -> None:
        """A prompt was read, so much of which was kept."""
        with self._lock:
            self.num_hits, self.num_asked = self.num_hits + num_hits, self.num_asked + num_tokens


class Prefix:
    """Where one answer finds the first blocks of its prompt, and leaves them; see ``Target.reuse``.

    Args:
        prefixes: Where blocks are kept. If None, they are not.
        namespace: Whose they are.
    """

    def __init__(self, prefixes: Prefixes | None, namespace: str) -> None:
        self._prefixes = prefixes
        self._owner = hashlib.blake2b(namespace.encode(), digest_size=32).digest()
        self.num_found = 0  # tokens that need not be read

    def find(self, prompt: Sequence[int]) -> list[Any]:
        """The states of a prompt's first blocks, as far as they are kept, and at least one token is left to read."""
        if self._prefixes is None:
            return []
        keys = list(self._keys(prompt))[: (len(prompt) - 1) // BLOCK]
        found = self._prefixes.find(keys)
        self.num_found = BLOCK * len(found)
        self._prefixes.count(self.num_found, len(prompt))
        return found

    def keep(self, prompt: Sequence[int], blocks: Sequence[Kept | None]) -> None:
        """Keep what was computed of a prompt's blocks. None stands for one that was kept already."""
        if self._prefixes is None:
            return
        for key, kept in reversed(list(zip(self._keys(prompt), blocks, strict=False))):
            if kept is not None:
                self._prefixes.add(key, kept)

    def _keys(self, prompt: Sequence[int]) -> Iterator[bytes]:
        digest = hashlib.blake2b(key=self._owner, digest_size=32)
        for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
            digest.update(array("q", prompt[start : start + BLOCK]).tobytes())
            yield digest.digest()
