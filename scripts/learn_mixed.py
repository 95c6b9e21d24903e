#!/usr/bin/env python
"""Learn what the mixer of the n-gram core and trained heads starts from, while the bundled model continues texts.

    python scripts/learn_mixed.py --data build/speculators/data.jsonl --speculator tiny-speculator

The texts are of those that the model learned from, which ``train_speculators.py`` writes; no prompt of a benchmark is
among them. Every judged node counts, greedy and sampled. Prints the weights that ``drafters/mixed.py`` has, and
the log loss before and after.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from foretoken import FixedBudget, decode
from foretoken.core.costs import CostCurve
from foretoken.drafters.mixed import Mixed, MixedHeadsDrafter, Node, Weighing
from foretoken.drafters.recipe import Parts
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.helpers import TransformersHelpers
from foretoken.engines.transformers.loading import load_model
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.memory.corpus.general import general_background
from foretoken.memory.fingerprint import fingerprint
from foretoken.memory.namespace import Namespace
from foretoken.tokenizing import batch_encoder, load_tokenizer

SEED = 0
KINDS = ("# Before:", "<|user|>", '"""', "")  # what edits, answers, code and all other documents begin with
PROMPT, ANSWER, MOST = 600, 100, 400  # characters; tokens of an answer; tokens of a prompt
DRAFTED, FLOOR = FixedBudget(24), 0.003
TEMPERATURES = (0.0, 0.8)
Kinds = tuple[int, int]


class Recording(Weighing):
    """A mixer that learns nothing and remembers what it was told.

    Args:
        seen: For what the two drafters do, a row for each judged node: both pieces of evidence, and whether it held.
    """

    def __init__(self, seen: dict[Kinds, list[tuple[float, float, bool]]]) -> None:
        super().__init__()
        self.seen = seen

    def learn(self, node: Node, right: bool) -> None:
        one, two = node.opinions
        self.seen[one.kind, two.kind].append((one.evidence, two.evidence, right))


def prompts(path: Path, of_a_kind: int) -> Iterator[str]:
    """The beginnings of documents, as many of each kind; of edits and answers all that comes before the reply."""
    lines = path.read_text(encoding="utf-8").splitlines()
    random.Random(SEED).shuffle(lines)
    left = dict.fromkeys(KINDS, of_a_kind)
    for line in lines:
        text = json.loads(line)["text"]
        kind = next(kind for kind in KINDS if text.startswith(kind))
        if not left[kind]:
            continue
        left[kind] -= 1
        if kind == KINDS[0]:
            yield text[: text.find("\n", text.find("\n\n# After") + 2) + 1]
        elif kind == KINDS[1]:
            yield text[: text.find("<|assistant|>\n") + len("<|assistant|>\n")]
        else:
            yield text[:PROMPT]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--speculator", required=True)
    parser.add_argument("--of-a-kind", type=int, default=12, help="prompts of each kind of document")
    args = parser.parse_args()

    tokenizer, model = load_tokenizer("tiny"), load_model("tiny", "float32")
    background = general_background(batch_encoder(tokenizer), fingerprint(tokenizer))
    encoded = (tokenizer.encode(text).ids for text in prompts(args.data, args.of_a_kind))
    asked = [ids for ids in encoded if len(ids) <= MOST]
    helpers = TransformersHelpers(model, speculator=args.speculator)
    seen: dict[Kinds, list[tuple[float, float, bool]]] = defaultdict(list)
    for temperature in TEMPERATURES:
        warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)] if temperature else [])
        target = TransformersTarget(model, Choice(warpers, SEED) if temperature else Choice())
        memory = Namespace(background=background)
        parts = Parts.of(helpers, target, partial(getattr, memory, "ngrams"), CostCurve())
        for ids in asked:
            drafter = Mixed(floor=FLOOR, heads=True).make(parts)
            assert isinstance(drafter, MixedHeadsDrafter)
            drafter.weighing = Recording(seen)
            steps = decode(target, drafter, ids, max_new_tokens=ANSWER, budget=DRAFTED)
            memory.keep([token for step in steps for token in step.tokens])
    for kinds, rows in sorted(seen.items()):
        evidence, right = np.array([(*row[:2], 1.0) for row in rows]), np.array([row[2] for row in rows])
        start = np.array(Weighing.START[kinds])
        fitted = fit(evidence, right)
        before, after = (log_loss(evidence @ weights, right) for weights in (start, fitted))
        print(f"{kinds}: {np.round(fitted, 2).tolist()}, {len(rows)} nodes, log loss {before:.4f} -> {after:.4f}")


def fit(evidence: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logistic regression by Newton's method: the weights [3] of ``evidence`` [n, 3]."""
    weights = np.zeros(3)
    for _ in range(30):
        chance = 1 / (1 + np.exp(-evidence @ weights))
        curvature = (evidence.T * (chance * (1 - chance))) @ evidence + 1e-3 * np.eye(3)
        weights += np.linalg.solve(curvature, evidence.T @ (right - chance))
    return weights


def log_loss(log_odds: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """In nats, of a node."""
    return float(np.logaddexp(0.0, np.where(right, -log_odds, log_odds)).mean())


if __name__ == "__main__":
    main()
