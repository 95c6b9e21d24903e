"""How many threads torch computes with: one, where further ones make a small model's forwards no faster."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from foretoken.engines.transformers.inputs import input_device

SAID_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # environment variables by which a user says how many
ROWS = 4  # of a forward that is measured: what a short draft has
MAX_SECONDS = 0.4  # when to begin with no further forward
LARGE = 0.25  # seconds of a forward that further threads surely pay for, unless the machine is very busy
TIMES = 5


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


def fewest(many: int, seconds: Callable[[int], float]) -> int:
    """One thread if a forward is no slower with it, else as many as there are.

    Args:
        many: How many there are.
        seconds: Runs a forward with so many threads and says how long it took.
    """
    ends_at = time.perf_counter() + MAX_SECONDS
    times: dict[int, list[float]] = {1: [], many: []}
    if seconds(many) > LARGE:  # the first forward prepares things, so it counts for nothing else
        return many
    for _ in range(TIMES):
        for threads, some in times.items():
            some.append(seconds(threads))
        if time.perf_counter() > ends_at:
            break
    return 1 if statistics.median(times[1]) <= statistics.median(times[many]) else many
