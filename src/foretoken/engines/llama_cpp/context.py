"""A context of llama.cpp: a cache of keys and values for one sequence and the branches of a draft, and its forwards."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foretoken.core.errors import ModelError
from foretoken.engines.llama_cpp.library import GGUFModel, last_error, library

MAIN = 0  # the sequence of the committed tokens
FLOATS = (None, 0, 1)  # GGML's numbers of types of a cache that any attention reads
BATCH = 512  # rows of a forward at most
BRANCHES = 64  # leaves of a draft beside the main chain
PAD, ALL = BRANCHES + 1, -1  # the sequence of rows that nobody asks for


@dataclass(frozen=True)
class ContextSettings:
    """How contexts of a model are made.

    Args:
        length: The most tokens of prompt and answer together.
        threads: That a forward is computed with.
        cache_type: GGML's number of the type of keys and values. None for llama.cpp's own, float16.
        gpu_layers: Layers of the model that are on a GPU.
        flash: Whether attention is llama.cpp's flash attention.
    """

    length: int
    threads: int
    cache_type: int | None = None
    gpu_layers: int = 0
    flash: bool = False

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
        _check_memory(gguf, settings)
        parameters = calls.llama_context_default_params()
        # A draft needs cells beyond the text, which may reach up to its limit.
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = settings.length + BATCH, BATCH, BATCH
        parameters.n_seq_max, parameters.kv_unified = PAD + 1, True
        parameters.n_threads = parameters.n_threads_batch = settings.threads
        parameters.flash_attn_type = (
            calls.LLAMA_FLASH_ATTN_TYPE_ENABLED if settings.flash else calls.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        if settings.cache_type is not None:
            parameters.type_k = parameters.type_v = settings.cache_type
        self._pointer = calls.llama_init_from_model(gguf.pointer, parameters)
        if not self._pointer:
            raise ModelError(
                f"llama.cpp makes no context of {settings.length} tokens for {str(gguf.path)!r} "
                f"({last_error() or 'it does not say why'}): ask for a shorter one."
            )
        self._batch = calls.llama_batch_init(BATCH, 0, PAD + 1)
        self._fields = Fields.of(self._batch)
        self._logits: tuple[int, NDArray[np.float32]] | None = None  # their address, and all that ever were wanted
        self._memory = calls.llama_get_memory(self._pointer)
        self._gguf = gguf  # which must outlive it
        weakref.finalize(self, _free, self._pointer, self._batch)

    def clear(self) -> None:
        """Forget all tokens."""
        library().llama_memory_clear(self._memory, False)

    def branch(self, sequence: int) -> None:
        """Let a sequence begin with all that the main one holds."""
        library().llama_memory_seq_cp(self._memory, MAIN, sequence, -1, -1)

    def drop(self, sequence: int, length: int = 0) -> None:
        """Let a sequence, or ``ALL``, hold no more than so many tokens.

        A branch that is dropped to what it shares with the main sequence needs nothing else: it begins anew with all
        that the main one holds. To take it out of every cell takes fifty times as long.
        """
        library().llama_memory_seq_rm(self._memory, sequence, length, -1)

    def show_states(self, shown: bool) -> None:
        """Let forwards leave what the output head reads, or not."""
        library().llama_set_embeddings(self._pointer, shown)

    def states(self, wanted: int) -> NDArray[np.float32]:
        """What the output head read in the last forward's rows that were wanted, float32 [wanted, width]."""
        pointer = library().llama_get_embeddings(self._pointer)
        states: NDArray[np.float32] = np.ctypeslib.as_array(pointer, (wanted, self._gguf.width)).copy()
        return states

    def forward(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Read some rows, ``BATCH`` at most, and give the logits of those that are wanted, until it is called again.

        Returns:
            float32 [wanted, vocab].

        Raises:
            ForetokenError: If llama.cpp cannot, as when the cache is full.
        """
        self._batch.n_tokens = len(rows)
        self._fields.fill(rows)
        code = library().llama_decode(self._pointer, self._batch)
        if code:
            raise ModelError(f"llama.cpp could not read {len(rows)} rows (llama_decode says {code}; {last_error()}).")
        return self._logits_of(sum(row.wanted for row in rows))

    def _logits_of(self, wanted: int) -> NDArray[np.float32]:
        """What the forward left, float32 [wanted, vocab]: a view, which is made anew only where it must be."""
        if not wanted:
            return np.empty((0, self._gguf.vocab_size), np.float32)
        pointer = library().llama_get_logits(self._pointer)
        address = ctypes.cast(pointer, ctypes.c_void_p).value or 0
        if self._logits is None or self._logits[0] != address or len(self._logits[1]) < wanted:
            self._logits = address, np.ctypeslib.as_array(pointer, (wanted, self._gguf.vocab_size))
        return self._logits[1][:wanted]


def _check_memory(gguf: GGUFModel, settings: ContextSettings) -> None:
    """Refuse a cache that this machine's memory cannot hold: it would be given, and the process killed as it fills.

    Raises:
        ForetokenError: If it cannot.
    """
    needed = settings.length * gguf.cached_numbers * (1 if settings.cache_type not in FLOATS else 2)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not settings.gpu_layers and needed > there:
        raise ModelError(
            f"A context of {settings.length} tokens takes {needed / 2**30:.0f} GiB for {str(gguf.path)!r}, and this "
            f"machine has {there / 2**30:.0f}: ask for a shorter one."
        )


class Fields(NamedTuple):
    """The arrays of a batch: what llama.cpp reads of a forward's rows."""

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    wanted: NDArray[np.int8]
    num_sequences: NDArray[np.int32]
    sequences: Any  # pointers: the sequences of a row
    written: list[Sequence[int]]  # there, so that what is the same again need not be

    @classmethod
    def of(cls, batch: Any) -> Fields:
        """Those of a batch with room for ``BATCH`` rows."""
        tokens, positions, wanted, num_sequences = (
            np.ctypeslib.as_array(array, (BATCH,)) for array in (batch.token, batch.pos, batch.logits, batch.n_seq_id)
        )
        return cls(tokens, positions, wanted, num_sequences, batch.seq_id, [()] * BATCH)

    def fill(self, rows: Sequence[Row]) -> None:
        """Write the rows of a forward."""
        num = len(rows)
        self.tokens[:num] = [row.token for row in rows]
        self.positions[:num] = [row.position for row in rows]
        self.wanted[:num] = [row.wanted for row in rows]
        for i, row in enumerate(rows):
            if row.sequences != self.written[i]:
                self.written[i] = row.sequences
                self.num_sequences[i] = len(row.sequences)
                for j, sequence in enumerate(row.sequences):
                    self.sequences[i][j] = sequence


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

    def but(self, **settings: Any) -> Contexts:
        """Contexts of the same model with some other settings."""
        return Contexts(self._gguf, replace(self.settings, **settings))

    def take(self, owner: object) -> Context:
        """A context for as long as its owner lives."""
        context = self._free.pop() if self._free else Context(self._gguf, self.settings)
        weakref.finalize(owner, self._free.append, context).atexit = False
        return context
