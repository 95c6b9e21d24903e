from __future__ import annotations

import random

import pytest

from foretoken import Draft, Step
from foretoken.core.verify import verify_match
from foretoken.engines.replay import ReplayTarget
from foretoken.replay.calibration import BINS, Reliability
from helpers.drafting import RandomTrees, verified


def test_only_children_of_accepted_nodes_count():
    #  5 (right) - 6 (right) - 9 (wrong), 8 (wrong)
    #  7 (wrong) - 6 (never tested)
    draft = Draft((5, 7, 6, 6, 9, 8), (-1, -1, 0, 1, 2, 2), (0.7, 0.2, 0.9, 0.99, 0.5, 0.01))
    reliability = Reliability()
    reliability.add(verified((5, 6, 4), draft))
    found = {row["mean_prob"]: row["right"] for row in reliability.as_dict()["bins"]}
    assert {round(prob, 2): right for prob, right in found.items()} == {0.01: 0, 0.2: 0, 0.5: 0, 0.7: 1, 0.9: 1}
    assert reliability.error == pytest.approx((0.01 + 0.2 + 0.5 + 0.3 + 0.1) / 5)


def test_every_accepted_node_is_right_once():
    rng = random.Random(0)
    for seed in range(300):
        record = [rng.randrange(3) for _ in range(9)]
        tree = RandomTrees(seed, 3).propose([0, 1, 2], 8)
        draft = Draft(tree.tokens, tree.parents, tuple(rng.random() for _ in tree.tokens))
        target = ReplayTarget(record)
        scores = target.prefill([0])
        scores.draft = draft
        verdict = verify_match(draft, scores)
        tokens = (*(draft.tokens[node] for node in verdict.path), verdict.next_token)
        reliability = Reliability()
        reliability.add(Step(draft, tokens, scores, path=verdict.path))
        tested = [node for node, parent in enumerate(draft.parents) if parent == -1 or parent in verdict.path]
        assert sum(reliability.nodes) == len(tested) and sum(reliability.right) >= len(verdict.path)


def test_the_total_is_that_of_all_counts():
    parts, whole = [Reliability() for _ in range(3)], Reliability()
    rng = random.Random(1)
    for i in range(300):
        prob, right = rng.random(), rng.random() < 0.4
        parts[i % 3].count(prob, right)
        whole.count(prob, right)
    total = Reliability.total(parts)
    assert (total.nodes, total.right) == (whole.nodes, whole.right)
    assert total.error == pytest.approx(whole.error)


def test_certainty_and_nonsense_have_a_bin():
    reliability = Reliability()
    for prob in (1.0, 1.5, 0.0, -0.5):
        reliability.count(prob, True)
    assert reliability.nodes == [2, *[0] * (BINS - 2), 2]
