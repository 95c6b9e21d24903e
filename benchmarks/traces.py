"""What each drafter would have had accepted in recorded answers of real models, exactly and without any model.

    python -m benchmarks.traces --data traces --tokenizer tokenizer.json.gz

A folder holds *.jsonl.gz of lines with "prompt" and "output". A drafter begins each file with no earlier answers and
remembers them from answer to answer; the n-gram core runs with and without the package's corpus, on trees and on
chains. Prints for each drafter the means over the files, of the gain (tokens per step - 1) the geometric one, then each
file.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.common import RESULTS, Out, finish, run
from benchmarks.recorded import log_files
from foretoken.drafters import TEXT_DRAFTERS
from foretoken.memory.corpus.general import general_folder
from foretoken.memory.fingerprint import fingerprint
from foretoken.replay.calibration import Reliability
from foretoken.replay.job import JobResult, with_answers
from foretoken.replay.plan import make_jobs
from foretoken.replay.read import Reading
from foretoken.replay.run import run_jobs
from foretoken.tokenizing import batch_encoder, load_tokenizer

BUDGET = 10


def main(
    data: Annotated[list[Path], typer.Option(help="A folder of recorded answers, *.jsonl.gz (repeatable).")],
    tokenizer: Annotated[str, typer.Option(help="The tokenizer.json to read them with, plain or .gz.")],
    limit: Annotated[int, typer.Option(min=1, help="Answers of each file.")] = 24,
    out: Out = RESULTS / "traces.json",
) -> None:
    """Count what each drafter would have had accepted in recorded answers."""
    found = measure(data, tokenizer, limit)
    finish(out, found, found["summary"], found["rows"])


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
    results = with_answers(run_jobs(jobs, processes=1))
    return {"summary": summarise(results), "rows": [result.row() for result in results]}


def summarise(results: Sequence[JobResult]) -> list[dict[str, Any]]:
    """A line for each drafter: means over the files, of the gain (tokens per step - 1) the geometric one."""
    lines = []
    for name in dict.fromkeys(result.job.drafter for result in results):
        own = [result for result in results if result.job.drafter == name]
        rows = [result.row() for result in own]
        reliability = Reliability.total(result.reliability for result in own)
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


if __name__ == "__main__":
    run(main)
