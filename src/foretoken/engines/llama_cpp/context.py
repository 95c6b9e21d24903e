"""A context of llama.cpp: a cache of keys and values for one sequence and the branches of a draft, and its forwards."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foretoken.core.errors import ModelError
from foretoken.engines.llama_cpp.library import GGUFModel, last_error, library

MAIN = 0  # the sequence of the committed tokens
BATCH = 512  # rows of a forward at most
BRANCHES = 64  # leaves of a draft beside the main chain
PAD = BRANCHES + 1  # the sequence of rows that nobody asks for


@dataclass(frozen=True)
class ContextSettings:
    """How contexts of a model are made.

    Args:
        length: The most tokens of prompt and answer together.
        threads: That a forward is computed with.
        cache_type: GGML's number of the type of keys and values. None for llama.cpp's own, float16.
        gpu_layers: Layers of the model that are on a GPU.
    """

    length: int
    threads: int
    cache_type: int | None = None
    gpu_layers: int = 0

    @property
    def runs_here(self) -> bool:
        """Whether forwards run in the thread that asks for them, and nowhere else."""
        return self.threads == 1 and not self.gpu_layers


class Row(NamedTuple):
    """One row of a forward.

    Args:
        token: What it reads.
        position: Its place in the text.
        sequences: Those that it belongs to. It sees what belongs to the first of them.
        wanted: Whether its logits will be asked for.
    """

    token: int
    position: int
    sequences: Sequence[int] = (MAIN,)
    wanted: bool = True


class Context:
    """A cache and the room that forwards need.

    Args:
        gguf: The model.
        settings: How it is made.

    Raises:
        ForetokenError: If there is no memory for it.
    """

    def __init__(self, gguf: GGUFModel, settings: ContextSettings) -> None:
        calls = library()
        parameters = calls.llama_context_default_params()
        # A draft needs cells beyond the text, which may reach up to its limit.
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = settings.length + BATCH, BATCH, BATCH
        parameters.n_seq_max, parameters.kv_unified = PAD + 1, True
        parameters.n_threads = parameters.n_threads_batch = settings.threads
        # Its sums run in one order whatever the number of rows, from two rows on.
        parameters.flash_attn_type = calls.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if settings.cache_type is not None:
            parameters.type_k = parameters.type_v = settings.cache_type
        self._pointer = calls.llama_init_from_model(gguf.pointer, parameters)
        if not self._pointer:
            raise ModelError(
                f"llama.cpp makes no context of {settings.length} tokens for {str(gguf.path)!r} "
                f"({last_error() or 'it does not say why'}): ask for a shorter one."
            )
        self._batch = calls.llama_batch_init(BATCH, 0, PAD + 1)
        self._memory = calls.llama_get_memory(self._pointer)
        self._gguf = gguf  # which must outlive it
        weakref.finalize(self, _free, self._pointer, self._batch)

    def clear(self) -> None:
        """Forget all tokens."""
        library().llama_memory_clear(self._memory, True)

    def branch(self, sequence: int) -> None:
        """Let a sequence begin with all that the main one holds."""
        library().llama_memory_seq_cp(self._memory, MAIN, sequence, -1, -1)

    def keep_main(self, length: int) -> None:
        """Drop all other sequences, and what the main one holds beyond so many tokens."""
        library().llama_memory_seq_keep(self._memory, MAIN)
        library().llama_memory_seq_rm(self._memory, MAIN, length, -1)

    def forward(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Read some rows, ``BATCH`` at most, and give the logits of those that are wanted, until it is called again.

        Returns:
            float32 [wanted, vocab].

        Raises:
            ForetokenError: If llama.cpp cannot, as when the cache is full.
        """
        batch: Any = self._batch
        batch.n_tokens = len(rows)
        for i, row in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = row.token, row.position, row.wanted
            batch.n_seq_id[i] = len(row.sequences)
            for j, sequence in enumerate(row.sequences):
                batch.seq_id[i][j] = sequence
        code = library().llama_decode(self._pointer, batch)
        if code:
            raise ModelError(f"llama.cpp could not read {len(rows)} rows (llama_decode says {code}; {last_error()}).")
        wanted = sum(row.wanted for row in rows)
        if not wanted:
            return np.empty((0, self._gguf.vocab_size), np.float32)
        pointer = library().llama_get_logits(self._pointer)
        logits: NDArray[np.float32] = np.ctypeslib.as_array(pointer, (wanted, self._gguf.vocab_size))
        return logits


def _free(pointer: Any, batch: Any) -> None:
    library().llama_batch_free(batch)
    library().llama_free(pointer)


class Contexts:
    """The contexts of a model. An answer takes one and gives it back, so that few are made.

    Args:
        gguf: The model.
        settings: How they are made.
    """

    def __init__(self, gguf: GGUFModel, settings: ContextSettings) -> None:
        self._gguf, self.settings = gguf, settings
        self._free: list[Context] = []

    def with_threads(self, threads: int) -> Contexts:
        """Contexts of the same model that compute with so many threads."""
        return Contexts(self._gguf, replace(self.settings, threads=threads))

    def take(self, owner: object) -> Context:
        """A context for as long as its owner lives."""
        context = self._free.pop() if self._free else Context(self._gguf, self.settings)
        weakref.finalize(owner, self._free.append, context).atexit = False
        return context
