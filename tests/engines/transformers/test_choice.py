"""Choosing from logits, also where they are not numbers, and the largest of many."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from foretoken import ForetokenError
from foretoken.engines.transformers.choice import Choice, top

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_top_of_rows_is_the_start_of_a_whole_sort(dtype):
    rows = torch.stack([torch.randperm(200, generator=torch.Generator().manual_seed(i)) for i in range(3)]).to(dtype)
    named = top(rows[:, ::2], 8)  # columns that do not lie side by side
    expected = rows[:, ::2].float().sort(descending=True).indices[:, :8]
    assert torch.equal(torch.as_tensor(named.tokens).long(), expected)
    probs = rows[:, ::2].float().softmax(-1).gather(1, expected)
    torch.testing.assert_close(torch.as_tensor(named.probs), probs)
