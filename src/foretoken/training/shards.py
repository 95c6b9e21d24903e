"""Windows of tokens and the base's states for them, a shard at a time on disk, so that memory holds none of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from foretoken.core.errors import ModelError
from foretoken.files import writing
from foretoken.training.base import FrozenBase
from foretoken.training.tokens import TokenStream

Progress = Callable[[str, int, int], None]
"""Is told what is being made, how many rows of it there are, and of how many."""


@dataclass(frozen=True)
class Generating:
    """How the base's own texts are made, as published (arXiv 2404.19124).

    Args:
        prompt: Tokens of a prompt, cut from the data.
        length: Tokens that are generated after it.
        temperature: To sample with.
        top_k: Sample from so many tokens. 0 means from all.
        batch: Texts that are generated at once.
    """

    prompt: int = 64
    length: int = 256
    temperature: float = 1.0
    top_k: int = 10
    batch: int = 128


@dataclass(frozen=True)
class Shard:
    """Some windows and their states.

    Args:
        ids: int64 [windows, length], memory-mapped.
        states: float16 [windows, length, width], memory-mapped.
        first: The first row whose guesses count: in a generated text, that of the last token of the prompt.
    """

    ids: NDArray[np.int64]
    states: NDArray[np.float16]
    first: int


class Shards:
    """The windows of one stage, in shards of which any can be made again from the seed.

    Ids of generated texts are kept. States are dropped when training has passed their shard.

    Args:
        folder: Where they lie.
        base: Whose states they are.
        stream: The data.
        windows: In a shard.
        seed: Decides which.
        own: How the base generates the texts. If None, they are cut from the data.
        held_out: From the blocks that are held out.
        progress: Is told how far a shard is.
    """

    def __init__(
        self,
        folder: Path,
        base: FrozenBase,
        stream: TokenStream,
        windows: int,
        seed: int,
        own: Generating | None = None,
        held_out: bool = False,
        progress: Progress = lambda name, done, total: None,
    ) -> None:
        self._base, self._stream, self._windows, self._seed = base, stream, windows, seed
        self._own, self._held_out, self._progress = own, held_out, progress
        self._folder = folder
        self.length = own.prompt + own.length if own else 320
        kind = "own" if own else "text"
        settings = f"{own.prompt}-{own.length}-{own.temperature}-{own.top_k}-" if own else ""
        split = "held-out-" if held_out else ""
        self._name = f"{kind}-{split}{settings}{windows}-{seed}-{stream.key}"

    @property
    def num_labels(self) -> int:
        """Tokens of a shard that can be guessed."""
        return self._windows * (self._own.length if self._own else self.length)

    def load(self, number: int) -> Shard:
        """A shard, made if it is not there.

        Raises:
            ForetokenError: If it cannot be written, or a state is not a number of float16.
        """
        ids = self._path(number, "ids")
        if not ids.exists():
            made = self._windows_of(number)
            with writing(ids, folders=True) as file:
                np.save(file, made)
        states = self._path(number, "states")
        if not states.exists():
            self._write_states(np.load(ids, mmap_mode="r"), states)
        first = self._own.prompt - 1 if self._own else 0
        return Shard(np.load(ids, mmap_mode="r"), np.load(states, mmap_mode="r"), first)

    def drop_before(self, number: int) -> None:
        """Delete the states of the shards that training has passed, so that the disk holds two shards at most."""
        for path in self._folder.glob(f"{self._name}-*.states.npy"):
            if int(path.name.split(".")[-3].rsplit("-", 1)[1]) < number:
                path.unlink(missing_ok=True)

    def _path(self, number: int, what: str) -> Path:
        return self._folder / f"{self._name}-{number:05}.{what}.npy"

    def _windows_of(self, number: int) -> NDArray[np.int64]:
        seed = (self._seed, number, 1 if self._own else 0)
        if self._own is None:
            return self._stream.windows(self._windows, self.length, seed, self._held_out)
        own, rows = self._own, []
        prompts = torch.from_numpy(self._stream.windows(self._windows, own.prompt, seed, self._held_out))
        for start in range(0, self._windows, own.batch):
            some = prompts[start : start + own.batch]
            rows.append(self._base.generate(some, own.length, own.temperature, own.top_k, (*seed, start)))
            self._progress("generating", start + len(some), self._windows)
        return torch.cat(rows).numpy()

    def _write_states(self, ids: NDArray[np.int64], path: Path) -> None:
        with writing(path, folders=True) as file:
            np.lib.format.write_array_header_2_0(
                file, {"descr": "<f2", "fortran_order": False, "shape": (*ids.shape, self._base.width)}
            )
            for start in range(0, len(ids), 8):
                states = self._base.states(torch.from_numpy(np.array(ids[start : start + 8]))).half().cpu()
                if not bool(states.isfinite().all()):
                    raise ModelError("The base's states do not fit float16, so no speculator can be trained on them.")
                file.write(states.numpy().tobytes())
                self._progress("states", start + len(states), len(ids))
