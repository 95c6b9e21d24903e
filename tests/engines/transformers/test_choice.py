"""Choosing from logits, also where they are not numbers, and the largest of many."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from foretoken import ForetokenError
from foretoken.engines.transformers.choice import GROUPS, Choice, top

IDS = torch.tensor([[1, 2]])
HOT = LogitsProcessorList([TemperatureLogitsWarper(2.0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("choice", [Choice(), Choice(seed=3), Choice(HOT), Choice(HOT, seed=3)])
def test_nothing_is_chosen_from_what_is_not_a_number(choice, dtype):
    logits = torch.tensor([0.5, float("nan"), 1.5], dtype=dtype)
    with pytest.raises(ForetokenError, match="not numbers"):
        choice.choose(IDS, logits)


def test_an_infinite_logit_is_the_largest_but_no_chance():
    logits = torch.tensor([0.5, float("inf"), 1.5])
    assert Choice().choose(IDS, logits) == int(logits.argmax()) == 1
    with pytest.raises(ForetokenError, match="not numbers"):
        Choice(seed=3).choose(IDS, logits)


def test_where_no_token_is_left_none_is_drawn():
    logits = torch.full((3,), -float("inf"))
    with pytest.raises(ForetokenError, match="no token"):
        Choice(seed=3).choose(IDS, logits)


def test_a_token_that_is_left_out_is_never_drawn():
    logits = torch.tensor([-float("inf"), 0.0, 0.0])
    assert {Choice(seed=seed).choose(IDS, logits) for seed in range(64)} == {1, 2}


@pytest.mark.parametrize("vocab", [3, 8, 1000, 16 * GROUPS - 1, 16 * GROUPS, 32_003])
@pytest.mark.parametrize("shift", [0, 1, -1])
def test_the_largest_logits_are_those_of_a_whole_sort(vocab, shift):
    """Each row has its largest logits next to each other, as one group or the columns left over may hold all."""
    rows = torch.stack([torch.randperm(vocab, generator=torch.Generator().manual_seed(i)) for i in range(3)]) / vocab
    rows = torch.cat([rows, torch.arange(vocab).roll(shift)[None] / vocab, torch.arange(vocab).flip(0)[None] / vocab])
    tokens, probs = top(rows, 8)
    expected = rows.sort(descending=True).indices[:, :8]
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(probs, rows.softmax(-1).gather(1, expected))
