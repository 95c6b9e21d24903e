"""The script that learns the starting weights, on answers made up here."""

from __future__ import annotations

import random
import runpy
from array import array
from pathlib import Path

from foretoken import DecodeStats, FixedBudget, decode
from foretoken.drafters.ngram import NgramMixer
from foretoken.engines.replay import ReplayTarget
from foretoken.ngrams.arrays import Weights
from foretoken.ngrams.shared import SharedNgrams, untrained_weights
from foretoken.replay.read import Trace

SCRIPT = Path(__file__).parent.parent / "scripts" / "learn_weights.py"


def made_up(seed: int) -> Trace:
    """An answer that copies its prompt but for a few tokens; half of all tokens are of four that tell nothing."""
    chance = random.Random(seed)
    prompt = [chance.choice([chance.randrange(4), chance.randrange(4, 40)]) for _ in range(150)]
    start = chance.randrange(60)
    record = prompt[start : start + 80]
    for i in (30, 31, 55):
        record[i] = chance.randrange(4)
    return Trace(array("i", [*prompt, 100, *prompt[start : start + 4]]), array("i", record[4:]))


def test_learning_beats_starting_untrained():
    learn = runpy.run_path(str(SCRIPT))["learn"]
    runs = [[made_up(seed) for seed in range(start, start + 6)] for start in range(0, 60, 6)]

    def tokens_per_step(weights: Weights) -> float:
        stats = DecodeStats()
        for trace in map(made_up, range(1000, 1020)):
            drafter = NgramMixer(SharedNgrams(weights=weights), rate=0.0)
            target = ReplayTarget(trace.record)
            for step in decode(target, drafter, trace.prompt, max_new_tokens=len(trace.record), budget=FixedBudget(8)):
                stats.add(step)
        return stats.tokens / stats.steps

    assert tokens_per_step(learn(runs, None)) > 1.05 * tokens_per_step(untrained_weights())
