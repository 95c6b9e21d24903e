"""What our drafter costs in a step of vLLM: 32 requests of 4,000 tokens, and the first sight of their prompts.

No vLLM is needed: the drafter is asked as vLLM asks it. Half of the text is predictable. Times are processor time of
this thread, since other programs would disturb the clock.

    python -m benchmarks.vllm_propose
"""

from __future__ import annotations

import statistics
import time
from types import SimpleNamespace

import numpy as np

from benchmarks.common import RESULTS, Out, finish, run
from benchmarks.overhead import half_predictable
from foretoken.hosts.vllm import Drafter
from foretoken.hosts.vllm.budget import BatchBudget
from foretoken.hosts.vllm.states import COUNTED
from foretoken.ngrams.arrays import Floats, Ints

REQUESTS, LENGTH, MOST, STEPS = 32, 4000, 8, 200


class Everything(BatchBudget):
    """Lets all be drafted that the drafter knows."""

    def allows(self, num_requests: int) -> bool:
        return True

    def floor(self, num_requests: int, num_drafted: int) -> float:
        return 0.0

    def choose(self, paths: Floats, num_requests: int) -> Ints:
        return np.asarray(np.count_nonzero(paths, axis=1), np.int32)


def main(out: Out = RESULTS / "vllm_propose.json") -> None:
    """Time ``propose`` in steps that decode, and in those that read prompts."""
    texts = np.zeros((REQUESTS, LENGTH + STEPS), np.int32)
    said = half_predictable(2 * REQUESTS * LENGTH)
    for row in range(REQUESTS):
        start = row * LENGTH
        texts[row] = said[start : start + LENGTH + STEPS]
    model = SimpleNamespace(max_model_len=2 * LENGTH)
    config = SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=MOST),
        model_config=model,
        scheduler_config=SimpleNamespace(max_num_seqs=REQUESTS),
    )
    rows = []
    for budget in (Everything(), None):
        drafter = Drafter(config)
        drafter.budget = budget or drafter.budget
        lengths = np.full(REQUESTS, LENGTH, np.int32)
        nothing: list[list[int]] = [[] for _ in range(REQUESTS)]
        drafter.propose(nothing[:1], lengths, texts)  # compiles
        prompts = [_milliseconds(drafter, nothing, lengths, texts) for _ in range(REQUESTS * LENGTH // COUNTED + 2)]
        steps, drafted = [], 0
        for _ in range(STEPS):
            new = [[int(texts[row, length])] for row, length in enumerate(lengths)]
            lengths += 1
            steps.append(_milliseconds(drafter, new, lengths, texts))
            drafted += int(drafter.step.num_drafted)
        rows.append(
            {
                "budget": "all that is known" if budget else "of the clock",
                "step, median ms": statistics.median(steps),
                "step, 99 of 100 ms": sorted(steps)[len(steps) * 99 // 100],
                "drafted a step": drafted / STEPS,
                "prompts, most ms of a step": max(prompts),
                "a prompt in all, ms": sum(prompts) / REQUESTS,
            }
        )
    finish(out, {"rows": rows, "requests": REQUESTS, "tokens": LENGTH}, rows)


def _milliseconds(drafter: Drafter, new: list[list[int]], lengths: Ints, texts: Ints) -> float:
    started = time.thread_time()
    drafter.propose(new, lengths, texts)
    return 1000 * (time.thread_time() - started)


if __name__ == "__main__":
    run(main)
