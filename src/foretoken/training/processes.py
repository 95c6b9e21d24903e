"""Several processes that train one speculator, as ``torchrun`` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor

from foretoken.engines.parallel import Ranks, process_group

# The first process makes texts while the others wait. If one of them ends, torchrun ends all.
PATIENCE = timedelta(days=7)


class Processes:
    """This process among those that train together; one alone if no ranks are given.

    Args:
        ranks: All of them.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.rank, self.count = (0, 1) if ranks is None else (ranks.rank, ranks.num)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over all processes into each tensor, which lies on this process's device."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
                tensor /= self.count


@contextmanager
def joined(device: str | None = None) -> Iterator[Processes]:
    """Join the processes that torchrun started; one alone if it started none.

    Args:
        device: As ``foretoken.load`` takes it.

    Raises:
        ForetokenError: If one of them is missing, or there are fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Processes()
        return
    with process_group(device, patience=PATIENCE) as ranks:
        yield Processes(ranks)
