"""One drafter on one file: the task that every process runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from foretoken.core.budget import FixedBudget
from foretoken.core.contracts import Drafter, Step
from foretoken.core.decode import decode
from foretoken.core.errors import ForetokenError
from foretoken.core.stats import DecodeStats
from foretoken.drafters import Parts, Recipe
from foretoken.engines.replay import ReplayTarget
from foretoken.memory.namespace import Namespace
from foretoken.ngrams.background import Background
from foretoken.replay.calibration import Reliability
from foretoken.replay.read import MIN_OUTPUT, Reading, Trace, read_log


@dataclass(frozen=True)
class Job:
    """A drafter and a file.

    Args:
        path: The file.
        label: How results name it.
        drafter: How results name the drafter.
        recipe: Makes one, in the process that runs the job. If None, decoding is plain.
        budget: Tokens to draft for each step.
        trees: Whether the target verifies trees, or only their main chains.
        reading: Which items, and how.
        background: The folder of the corpus to draft from, or None.
    """

    path: str
    label: str
    drafter: str
    recipe: Recipe | None
    budget: int
    trees: bool
    reading: Reading
    background: str | None = None

    def new_namespace(self) -> Namespace:
        """A memory of no answers yet."""
        remembers = self.recipe is not None and self.recipe.remembers
        return Namespace(background=Background.open(self.background) if self.background and remembers else None)

    def new_drafter(self, namespace: Namespace) -> Drafter | None:
        """A drafter that drafts from what ``namespace`` remembers, if it can."""
        parts = Parts(self.new_target([]), lambda: namespace.ngrams)
        return None if self.recipe is None else self.recipe.make(parts)

    def new_target(self, record: Sequence[int]) -> ReplayTarget:
        """A target that answers with what was recorded."""
        target = ReplayTarget(record)
        target.supports_trees = self.trees
        return target

    @property
    def title(self) -> str:
        """The label as tables and plots show it."""
        return re.sub(r"\.jsonl(\.gz|\.xz)?$", "", self.label)


@dataclass(frozen=True)
class Item:
    """What one answer took.

    Attributes:
        task: Its kind, where the log says one.
        stats: The counts of its decode.
        rows: How many steps ran how many rows, the last committed token's and the drafted ones.
    """

    task: str | None
    stats: DecodeStats
    rows: Counter[int]


@dataclass
class JobResult:
    """What a job found.

    Attributes:
        job: The job.
        items: An entry for each answer, in the order of the file.
        skipped: As ``Log.skipped``.
        unusable: As ``Log.unusable``.
        short: As ``Log.short``.
        branched: Whether any verified draft was not a chain.
        draft_seconds: Spent in ``propose``.
        proposals: How often ``propose`` was called.
        update_seconds: Spent in ``observe``.
        reliability: How the probabilities kept; empty where the drafter gives none.
    """

    job: Job
    items: list[Item] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    unusable: int = 0
    short: int = 0
    branched: bool = False
    draft_seconds: float = 0.0
    proposals: int = 0
    update_seconds: float = 0.0
    reliability: Reliability = field(default_factory=Reliability)

    def add(self, step: Step) -> None:
        """Count what the drafter did in a step."""
        self.draft_seconds += step.propose_seconds
        self.proposals += step.propose_seconds > 0
        self.update_seconds += step.observe_seconds
        if step.draft.probs:
            self.reliability.add(step)
        self.branched = self.branched or not step.draft.is_chain

    def row(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return {"file": self.job.label, "drafter": self.job.drafter, "budget": self.job.budget} | figures([self])


def with_answers(results: Sequence[JobResult]) -> list[JobResult]:
    """The results of the files that had an answer to replay.

    Raises:
        ForetokenError: If none had.
    """
    found = [result for result in results if result.items]
    if not found:
        files = {result.job.path: result for result in results}.values()
        bad, short = sum(result.unusable for result in files), sum(result.short for result in files)
        raise ForetokenError(
            f"There is no answer to replay: {bad} lines are unusable, {short} answers have under {MIN_OUTPUT} tokens."
        )
    return found


def figures(results: Sequence[JobResult]) -> dict[str, Any]:
    """The figures of all results together, with the keys that the rows have.

    ``tokens`` are all of the answers; the first of each comes from the prefill, so ``tokens_per_step`` is
    (tokens - answers) / steps. ``draft_us`` is the mean of one ``propose`` and ``update_us_per_token`` the time in
    ``observe`` by tokens, both after a warm-up: means, because their sum is what a user waits for.
    """
    stats = DecodeStats.total(item.stats for result in results for item in result.items)
    proposals = sum(result.proposals for result in results)
    return {
        "tokens": stats.tokens,
        "steps": stats.steps,
        "tokens_per_step": stats.acceptance_length,
        "drafted_per_step": stats.drafted / stats.steps if stats.steps else 0.0,
        "accept_rate": stats.acceptance_rate,
        "draft_us": 1e6 * sum(result.draft_seconds for result in results) / (proposals or 1),
        "update_us_per_token": 1e6 * sum(result.update_seconds for result in results) / (stats.tokens or 1),
    }


def run_job(job: Job) -> JobResult:
    """Run a job.

    Raises:
        ForetokenError: If the file cannot be read or the drafter fails.
    """
    log = read_log(job.path, job.reading)
    result = JobResult(job, skipped=log.skipped, unusable=log.unusable, short=log.short)
    try:
        if job.recipe is not None and log.traces:
            # Whatever a drafter compiles at its first call is no part of the time of a guess.
            warm = Trace(log.traces[0].prompt, log.traces[0].record[:32])
            replay([warm], JobResult(job))
        replay(log.traces, result)
    except ForetokenError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")
        raise ForetokenError(f"The drafter {job.drafter!r} failed on {job.label}: {reason}.") from error
    return result


def replay(traces: Iterable[Trace], result: JobResult) -> None:
    """Decode every answer in turn with one drafter, keep each for those that follow, and add what it took."""
    namespace, budget = result.job.new_namespace(), FixedBudget(result.job.budget)
    drafter = result.job.new_drafter(namespace)
    for trace in traces:
        record = trace.record.tolist()
        target = result.job.new_target(record)
        stats, rows = DecodeStats(), Counter[int]()
        steps = decode(target, drafter, trace.prompt.tolist(), max_new_tokens=len(record), budget=budget)
        for step in steps:
            if stats.tokens:
                rows[1 + len(step.draft)] += 1
            stats.add(step)
            result.add(step)
        namespace.keep(record)
        result.items.append(Item(trace.task, stats, rows))
