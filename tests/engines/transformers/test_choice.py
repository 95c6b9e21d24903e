"""Choosing from logits that are not numbers, which comparisons take for the largest or for none."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from foretoken import ForetokenError
from foretoken.engines.transformers.choice import Choice

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
