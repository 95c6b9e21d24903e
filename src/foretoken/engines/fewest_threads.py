"""How many threads a library computes with: one, where further ones make a small model's forwards no faster."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

SAID_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # environment variables by which a user says how many
MAX_SECONDS = 0.4  # when to begin with no further forward
LARGE = 0.25  # seconds of a forward that further threads surely pay for, unless the machine is very busy
TIMES = 5


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
