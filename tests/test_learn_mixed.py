"""The script that learns what the mixer of n-grams and heads starts from: its fit, and whose weights the mixer has."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "learn_mixed.py"))


def test_the_fit_finds_the_weights_that_the_chances_were_made_of():
    rng, truth = np.random.default_rng(0), np.array([0.7, 1.2, -0.4])
    evidence = np.column_stack([rng.normal(0, 2, (40_000, 2)), np.ones(40_000)])
    right = rng.random(40_000) < 1 / (1 + np.exp(-evidence @ truth))
    fitted = SCRIPT["fit"](evidence, right)
    np.testing.assert_allclose(fitted, truth, atol=0.05)
    assert SCRIPT["log_loss"](evidence @ fitted, right) < SCRIPT["log_loss"](evidence @ np.zeros(3), right) - 0.1


def test_an_input_that_tells_nothing_gets_no_weight():
    rng = np.random.default_rng(1)
    evidence = np.column_stack([rng.normal(size=(20_000, 2)), np.ones(20_000)])
    assert np.abs(SCRIPT["fit"](evidence, rng.random(20_000) < 0.5)).max() < 0.05


def test_log_loss_is_that_of_the_definition():
    log_odds, right = np.array([0.0, 2.0, -1.0]), np.array([True, False, False])
    chances = 1 / (1 + np.exp(-log_odds))
    by_hand = -np.mean([np.log(chances[0]), np.log(1 - chances[1]), np.log(1 - chances[2])])
    assert SCRIPT["log_loss"](log_odds, right) == pytest.approx(by_hand)


def test_prompts_are_as_many_of_each_kind_and_show_no_reply(tmp_path):
    documents = [
        "# Before:\nold\n\n# After renaming\nnew\n",
        "<|user|>\nask\n<|assistant|>\nreply\n",
        '"""doc"""',
        "x" * 900,
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents * 3))
    prompts = list(SCRIPT["prompts"](data, 2))
    assert len(prompts) == 8 and not any("new" in one or "reply" in one for one in prompts)
    assert sorted(set(prompts)) == sorted(
        ["# Before:\nold\n\n# After renaming\n", "<|user|>\nask\n<|assistant|>\n", '"""doc"""', "x" * 600]
    )
