"""Jobs that the tests of replay and of its pages run."""

from __future__ import annotations

import dataclasses

import pytest

from foretoken.replay.plan import make_jobs
from foretoken.replay.read import Reading
from foretoken.replay.tune import vllm_jobs
from helpers.drafting import Making, Siblings
from helpers.logs import rows, write_log, write_tokenizer


@pytest.fixture
def jobs_to_tune(tmp_path):
    """Two drafters and vLLM's on two files; the one called anpd drafts trees."""
    files = [write_log(tmp_path / f"{i}.jsonl", rows(6 + i)) for i in range(2)]
    reading = Reading(str(write_tokenizer(tmp_path / "tokenizer.json")))
    jobs = make_jobs(files, ["anpd", "prompt-lookup"], [2, 4], True, reading)
    jobs = [dataclasses.replace(job, recipe=Making(Siblings)) if job.drafter == "anpd" else job for job in jobs]
    return jobs + [job for file in (0, 4) for job in vllm_jobs(jobs[file], [2, 4])]
