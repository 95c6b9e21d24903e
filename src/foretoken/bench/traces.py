"""Acceptance on recorded answers of real models, without any model: what a drafter gains, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foretoken.drafters import DRAFTERS
from foretoken.replay.plan import make_jobs
from foretoken.replay.read import Reading
from foretoken.replay.run import run_jobs

BUDGET = 10


def measure(data: Path, tokenizer: str, limit: int) -> list[dict[str, Any]]:
    """Every drafter on every file of recorded answers, one after the other so that the times are undisturbed."""
    files = sorted(data.glob("*.jsonl.gz"))
    jobs = make_jobs(files, list(DRAFTERS), [BUDGET], True, Reading(tokenizer, limit))
    return [score.row() for score in run_jobs(jobs, processes=1)]
