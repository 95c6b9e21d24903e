"""Acceptance on recorded answers of real models, without any model: what a drafter gains, exactly."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foretoken.bench.recorded import log_files
from foretoken.drafters import TEXT_DRAFTERS
from foretoken.memory.corpus.general import general_folder
from foretoken.memory.fingerprint import fingerprint
from foretoken.replay.calibration import Reliability
from foretoken.replay.plan import make_jobs
from foretoken.replay.read import Reading
from foretoken.replay.run import run_jobs
from foretoken.replay.score import Score, with_answers
from foretoken.tokenizing import batch_encoder, load_tokenizer

BUDGET = 10


def measure(folders: Sequence[Path], tokenizer: str, limit: int) -> dict[str, Any]:
    """Every drafter on every file of recorded answers, the n-gram core with and without background, trees and chains.

    One job after the other, so that the times are undisturbed.

    Raises:
        ForetokenError: If a folder has no file, or no file an answer.
    """
    files = log_files(folders)
    loaded = load_tokenizer(tokenizer)
    corpus = str(general_folder(batch_encoder(loaded), fingerprint(loaded)))
    jobs = make_jobs(files, list(TEXT_DRAFTERS), [BUDGET], True, Reading(tokenizer, limit))
    core = [job for job in jobs if job.drafter == "ngram"]
    for trees, background in ((False, None), (True, corpus), (False, corpus)):
        jobs += [replace(job, drafter=_name(trees, background), trees=trees, background=background) for job in core]
    jobs.sort(key=lambda job: job.path)  # the file that was read last is still in memory
    scores = with_answers(run_jobs(jobs, processes=1))
    return {"summary": summarise(scores), "rows": [score.row() for score in scores]}


def summarise(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """A line for each drafter: means over the files, of the gain (tokens per step - 1) the geometric one."""
    lines = []
    for name in dict.fromkeys(score.job.drafter for score in scores):
        own = [score for score in scores if score.job.drafter == name]
        rows = [score.row() for score in own]
        reliability = Reliability.total(score.reliability for score in own)
        lines.append(
            {
                "drafter": name,
                "files": len(rows),
                "tokens_per_step": statistics.fmean(row["tokens_per_step"] for row in rows),
                "gain": statistics.geometric_mean(max(row["tokens_per_step"] - 1, 0.01) for row in rows),
                "drafted_per_step": statistics.fmean(row["drafted_per_step"] for row in rows),
                "calibration_error": reliability.error if sum(reliability.nodes) else None,
                "draft_us": statistics.median(row["draft_us"] for row in rows),
                "update_us_per_token": statistics.median(row["update_us_per_token"] for row in rows),
            }
        )
    return lines


def _name(trees: bool, background: str | None) -> str:
    return "ngram" + (" + background" if background else "") + ("" if trees else ", chains")
