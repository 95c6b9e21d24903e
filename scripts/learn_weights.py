"""Learn what the mixer of the n-gram core starts from, out of recorded answers.

    python scripts/learn_weights.py TRACES --tokenizer T --background STORE --out src/foretoken/drafters/weights.npz

TRACES is a folder of *.jsonl.gz; the first 24 answers of each file are left out, so that drafting can be measured on
them. Each run of 24 answers of a file begins with no earlier answers, as replay does. What is learned by every
committed token while drafting is learned here by every token, at a rate that falls from 0.02 to 0.002; once with the
background corpus and once without.
"""

from __future__ import annotations

import argparse
import random
from array import array
from pathlib import Path

import numpy as np

from foretoken.core.contracts import Step
from foretoken.core.draft import Draft
from foretoken.core.law import Law
from foretoken.drafters import kernels
from foretoken.drafters.background import Background
from foretoken.drafters.kernels import Weights
from foretoken.drafters.memory import Memory, untrained_weights
from foretoken.drafters.mixed import MixedNgram
from foretoken.replay.read import Reading, Trace, read_traces
from foretoken.tokenizing import batch_encoder, load_tokenizer

RUN = 24  # answers that share a history
MAX_RUNS = 120  # of a file
FIRST_RATE, LAST_RATE = 0.02, 0.002
SEED = 0


class NoScores:
    """An answer is recorded: nobody chose its tokens here."""

    def choose(self, row: int) -> int:
        raise NotImplementedError

    def law(self, row: int) -> Law:
        raise NotImplementedError


def step_of(record: array[int]) -> Step:
    return Step(Draft(), tuple(record), NoScores(), "stop")


def runs_of(folder: Path, tokenizer: str) -> list[list[Trace]]:
    """Runs of consecutive answers of all files, in random order."""
    encode = batch_encoder(load_tokenizer(tokenizer))
    runs = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        traces = read_traces(path, encode, Reading(tokenizer, limit=(MAX_RUNS + 1) * RUN)).traces
        runs += [traces[start : start + RUN] for start in range(RUN, len(traces), RUN)]
        print(f"{path.name}: {max(0, len(traces) - RUN)} answers", flush=True)
    random.Random(SEED).shuffle(runs)
    return runs


def learn(runs: list[list[Trace]], background: Background | None) -> Weights:
    """What the mixer knows after all runs."""
    weights = untrained_weights()
    for i, run in enumerate(runs):
        rate = FIRST_RATE * (LAST_RATE / FIRST_RATE) ** (i / len(runs))
        drafter = MixedNgram(Memory(background, weights=weights), rate=rate)
        for trace in run:
            drafter.begin(trace.prompt)
            drafter.observe(step_of(trace.record))
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("traces", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--background", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    runs = runs_of(arguments.traces, arguments.tokenizer)
    learned = {"alone": learn(runs, None), "background": learn(runs, Background.open(arguments.background))}
    arrays = {}
    for name, weights in learned.items():
        arrays[f"{name}_prob"] = weights.table[:, kernels.PROB]
        arrays[f"{name}_seen"] = np.minimum(weights.table[:, kernels.SEEN], 1e4).astype(np.float16)
        arrays[f"{name}_weight"] = weights.weight.astype(np.float16)
    np.savez_compressed(arguments.out, **arrays)
    print(f"learned from {sum(map(len, runs))} answers: {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
