"""How many threads torch computes with: one, where further ones make a small model's forwards no faster."""

from __future__ import annotations

import os
import time

import torch
from transformers import PreTrainedModel

from foretoken.engines.fewest_threads import SAID_BY, fewest
from foretoken.engines.transformers.inputs import input_device

ROWS = 4  # of a forward that is measured: what a short draft has


def settle_threads(model: PreTrainedModel) -> None:
    """Let torch compute with one thread if a forward of this model is then no slower.

    Threads wait for each other after every operation. On a small model that takes longer than the operation, and on a
    busy machine many times as long. It changes the whole process, so it is for a program that owns its process, such as
    a command. It takes less than a second, and nothing changes if the model is not on a CPU, or if the user has said
    how many threads there are.
    """
    many = torch.get_num_threads()
    if many == 1 or input_device(model).type != "cpu" or any(os.environ.get(name) for name in SAID_BY):
        return
    ids = torch.zeros((1, ROWS), dtype=torch.long)

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        started = time.perf_counter()
        with torch.inference_mode():
            model(ids, use_cache=False)
        return time.perf_counter() - started

    torch.set_num_threads(fewest(many, seconds))
