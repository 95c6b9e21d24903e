"""Many jobs over the cores of a machine or the machines of a Ray cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from foretoken.core.errors import ForetokenError
from foretoken.replay.job import Job, JobResult, run_job
from foretoken.replay.read import read_log

Ended = Generator[tuple[int, JobResult | str], None, None]  # of jobs by their index, in the order of their ends


def run_jobs(
    jobs: Sequence[Job],
    processes: int | None = None,
    ray_address: str | None = None,
    done: Callable[[Job], None] = lambda job: None,
) -> list[JobResult]:
    """The results of all jobs, in their order, wherever they run.

    Args:
        jobs: What to run; those of one file together, since a process keeps the file it read last.
        processes: How many run at a time. If None, as many as there are cores. If 1, it runs in this process.
        ray_address: Run on this cluster instead, whose machines must see the files under the same paths.
        done: Told of every job that has ended.

    Raises:
        ForetokenError: If a job fails, a process dies or the cluster cannot be used.
    """
    if not jobs:
        return []
    processes = min(processes or num_cores(), len(jobs))
    if ray_address is not None:
        ended = _on_ray(jobs, ray_address)
    elif processes <= 1:
        ended = _here(jobs)
    else:
        ended = _on_cores(jobs, processes)
    results: dict[int, JobResult] = {}
    with contextlib.closing(ended):
        for i, result in ended:
            if isinstance(result, str):
                raise ForetokenError(result)
            results[i] = result
            done(jobs[i])
    return [results[i] for i in range(len(jobs))]


def attempt(job: Job) -> JobResult | str:
    """The result, or the sentence that says why there is none. Ray would print pages for an exception."""
    try:
        return run_job(job)
    except ForetokenError as error:
        return str(error)


def num_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _here(jobs: Sequence[Job]) -> Ended:
    try:
        yield from enumerate(map(attempt, jobs))
    finally:
        read_log.cache_clear()


def _on_cores(jobs: Sequence[Job], processes: int) -> Ended:
    """Each job in one of several processes, started afresh: threads of a tokenizer do not survive a fork."""
    before = set(multiprocessing.active_children())
    futures: dict[Future[JobResult | str], int] = {}
    executor = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_single_threaded)
    try:
        with _interrupts_ignored():  # what a process ignores, those that it starts ignore from their first moment
            futures.update((executor.submit(attempt, job), i) for i, job in enumerate(jobs))
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise ForetokenError(
            "A process that replays died, perhaps for want of memory: give fewer --jobs or a --limit."
        ) from error
    finally:
        unfinished = any(not future.done() for future in futures)
        executor.shutdown(wait=not unfinished, cancel_futures=True)
        if unfinished:  # an interrupt, or a job that failed: the others' work is of no use
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()


def _single_threaded() -> None:
    """One thread for the tokenizer: the cores are taken by the other processes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say, and only it is interrupted
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _on_ray(jobs: Sequence[Job], address: str) -> Ended:
    """Each job as a task of a Ray cluster."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ForetokenError("A cluster needs Ray: pip install 'foretoken[ray]'.") from error
    _check_port(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ForetokenError(f"There is no Ray cluster to use at {address!r}: {reason.rstrip('.')}.") from error
    try:
        task = ray.remote(attempt)
        pending = {task.remote(job): i for i, job in enumerate(jobs)}
        while pending:
            (ready, *_), _ = ray.wait(list(pending), num_returns=1)
            try:
                result = ray.get(ready)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1].rstrip(".")
                raise ForetokenError(f"A task on the Ray cluster failed: {reason}.") from error
            yield pending.pop(ready), result
    finally:
        ray.shutdown()


def _check_port(address: str) -> None:
    """Refuse an address where nobody listens: Ray would wait for minutes and then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto", "local"
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ForetokenError(f"There is no Ray cluster to use at {address!r}: nobody answers there.") from error
