"""What a model's output head reads: the states of rows after the final norm, as trained heads read them, too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

_hooking = threading.Lock()  # torch numbers hooks without one, and two of the same number are one


def output_head(model: PreTrainedModel) -> nn.Module | None:
    """The layer that makes logits of states. None where the model does not tell it."""
    head = model.get_output_embeddings()
    return head if isinstance(head, nn.Module) else None


@contextmanager
def reading(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a module reads in this thread meanwhile, one tensor for each call of it.

    Several targets may share the module, and run it in other threads at the same time: their reads are left out.

    >>> import torch
    >>> layer = nn.Linear(2, 3)
    >>> with reading(layer) as read:
    ...     _ = layer(torch.tensor([[1.0, 2.0]]))
    >>> read, len(layer._forward_pre_hooks)
    ([tensor([[1., 2.]])], 0)
    """
    thread = threading.get_ident()
    read: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() == thread:
            read.append(args[0])

    with _hooking:
        handle = head.register_forward_pre_hook(keep)
    try:
        yield read
    finally:
        with _hooking:
            handle.remove()
