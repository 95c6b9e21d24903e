"""Numbers of any library are taken as options, None is not given, and fractions of tokens are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foretoken import ForetokenError, LanguageModel
from helpers.shapes import tiny_model
from helpers.tokenizing import character_tokenizer

PROMPT = "abcabcab"


@pytest.fixture(scope="module")
def lm():
    return LanguageModel(tiny_model("llama"), character_tokenizer(), background=None)


def tokens(lm, **options):
    return lm.generate(PROMPT, **{"max_new_tokens": 12, "seed": 3, "namespace": None, **options}).tokens


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("max_new_tokens", [12, np.int64(12), np.uint8(12)]),
        ("temperature", [1, 1.0, np.float32(1), np.int16(1)]),
        ("temperature", [0, 0.0, np.float64(0)]),
        ("top_k", [5, np.int32(5)]),
        ("top_p", [1, 1.0, np.float64(1)]),
        ("min_p", [0, 0.0, np.float32(0)]),
        ("min_p", [1, np.float32(1)]),
        ("repetition_penalty", [2, 2.0, np.float16(2)]),
        ("seed", [3, np.int64(3)]),
    ],
)
def test_a_number_is_a_number_of_whatever_type(lm, name, same):
    others = {} if name == "temperature" else {"temperature": 1.0}
    assert len({tokens(lm, **others, **{name: value}) for value in same}) == 1


def test_an_option_that_is_none_is_not_given(lm):
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "references", "budget")
    for name in names:
        assert tokens(lm, **{name: None}) == tokens(lm)
    torch.manual_seed(5)
    drawn = tokens(lm, temperature=1.0, seed=None)
    torch.manual_seed(5)
    assert tokens(lm, temperature=1.0, seed=None) == drawn
    assert len(lm.generate("a", max_new_tokens=None, namespace=None).tokens) == 256


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k", "seed"])
@pytest.mark.parametrize("value", [2.5, np.float32(2.5), float("nan"), float("inf"), "2", True, [2]])
def test_a_count_that_is_no_whole_number_is_refused(lm, name, value):
    with pytest.raises(ForetokenError, match=f"{name} is .*: give a whole number"):
        tokens(lm, **{name: value})
    with pytest.raises(ForetokenError, match=f"{name} is "):
        lm.stream(PROMPT, **{name: value})  # before the first chunk is asked for


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5", True, 1j, [0.5]])
def test_a_number_that_is_none_is_refused(lm, name, value):
    with pytest.raises(ForetokenError, match=f"{name} is .*: give a finite number"):
        tokens(lm, **{name: value})


@pytest.mark.parametrize("value", [2**63, -1, 10**30])
def test_a_seed_is_any_whole_number(lm, value):
    assert tokens(lm, temperature=1.0, seed=value) == tokens(lm, temperature=1.0, seed=value)
