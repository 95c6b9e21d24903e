"""Several processes that train one speculator, as ``accelerate launch`` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor

from foretoken.core.errors import RequestError


class Processes:
    """This process among those that train together; one alone if nothing started several.

    Raises:
        ForetokenError: If there are several and accelerate is missing.
    """

    def __init__(self, device: str | None = None) -> None:
        self.rank, self.count = 0, 1
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise RequestError("Several processes need accelerate: pip install 'foretoken[train]'.") from error
        state = PartialState(cpu=device == "cpu")
        self.rank, self.count = state.process_index, state.num_processes

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over all processes into each tensor."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
                tensor /= self.count
