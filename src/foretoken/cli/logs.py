"""What ``foretoken replay`` and ``tune`` share: recorded answers in, jobs under a progress bar, skipped lines named."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from foretoken.cli.console import err, plain
from foretoken.cli.options import LogOptions, ReplayOptions
from foretoken.core.errors import RequestError

if TYPE_CHECKING:
    from foretoken.replay.job import Job, JobResult
    from foretoken.replay.read import Reading

SHOWN = 5  # skipped lines that are named for each file


def reading_of(logs: LogOptions) -> Reading:
    """Which answers to read, and how."""
    from foretoken.replay.read import Reading

    return Reading(logs.tokenizer, logs.limit, logs.max_prompt, logs.max_output, logs.followups)


def readable_logs(files: Sequence[Path], ray: str | None, copies: ExitStack) -> dict[Path, Path]:
    """Where each file can be read by every job: a pipe is read once, into a private file that ``copies`` removes.

    Raises:
        ForetokenError: If one cannot be read, or is a pipe that a cluster is to read.
    """
    from foretoken.texts import readable_again

    logs = {path: copies.enter_context(readable_again(path)) for path in dict.fromkeys(files)}
    pipes = [path for path, copy in logs.items() if copy != path]
    if pipes and ray is not None:
        raise RequestError(f"{str(pipes[0])!r} is a pipe, which a cluster cannot read: give a file.")
    return logs


def run(jobs: Sequence[Job], replaying: ReplayOptions) -> list[JobResult]:
    """Run the jobs under a progress bar."""
    from foretoken.replay.run import run_jobs

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as progress:
        task = progress.add_task("replaying", total=len(jobs))

        def done(job: Job) -> None:
            progress.update(task, advance=1, description=f"{plain(job.label)}: {job.drafter}, budget {job.budget}")

        return run_jobs(jobs, replaying.jobs, replaying.ray, done)


def skipped(results: Sequence[JobResult]) -> list[dict[str, Any]]:
    """The lines that were passed over, the first of each file where they are many, once."""
    files = {result.job.path: result for result in results}.values()
    return [{"file": result.job.label, "line": line, "reason": why} for result in files for line, why in result.skipped]


def report_skipped(results: Sequence[JobResult]) -> None:
    """Name the lines that could not be used, on standard error."""
    for result in {result.job.path: result for result in results}.values():
        label = plain(result.job.label)
        if result.skipped:
            named = "; ".join(f"line {line}: {reason}" for line, reason in result.skipped[:SHOWN])
            more = result.unusable - SHOWN
            rest = f"; and {more} more" if more > 0 else ""
            err.print(f"{label}: skipped {result.unusable}: {named}{rest}", style="yellow")
        if not result.items:
            err.print(f"{label}: no answer to replay", style="yellow")


def provenance_of(logs: LogOptions, replaying: ReplayOptions) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "background": Path(replaying.background).name,
        "tokenizer": Path(logs.tokenizer).name,
        "limit": logs.limit,
        "max_prompt": logs.max_prompt,
        "max_output": logs.max_output,
        "followups": logs.followups,
    }
