"""Heads that were trained on a model's states, drafting for a GGUF file of that model."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from foretoken.core.errors import ModelError
from foretoken.engines.llama_cpp.choice import Choice
from foretoken.speculators.blockwise import BlockwiseHeads
from foretoken.speculators.formats import load_speculator
from foretoken.speculators.heads import Stages, TorchHeads, ready
from foretoken.speculators.module import IndependentHeads
from foretoken.speculators.noise import gumbel


def trained_heads(folder: Path, width: int, vocab_size: int, choice: Choice) -> TorchHeads:
    """The heads of a folder, for one answer; they are read once.

    Args:
        folder: Where they are.
        width: Of the model's states.
        vocab_size: Of the model.
        choice: The target's, whose temperature and noise they know.

    Raises:
        ForetokenError: If they cannot be read, or belong to another model.
    """
    sampling = choice.sampling
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    noise = partial(gumbel, sampling.seed or 0) if sampling.samples else None
    return TorchHeads(_loaded(folder, width, vocab_size), temperature if sampling.samples else 0.0, noise)


@cache
def _loaded(folder: Path, width: int, vocab_size: int) -> IndependentHeads | Stages:
    module = load_speculator(folder, width, vocab_size, nn.Linear(width, vocab_size, bias=False, device="meta"))
    if isinstance(module, BlockwiseHeads):
        raise ModelError(
            f"The heads in {str(folder)!r} share the model's output head, which llama.cpp does not show: use others."
        )
    return ready(module, torch.device("cpu"), torch.float32)
