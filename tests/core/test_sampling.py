"""The settings of a choice: one record, checked once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from foretoken import RequestError, Sampling


def test_numbers_of_any_library_become_pythons_own():
    sampling = Sampling(temperature=np.float32(0.5), top_k=np.int64(5), seed=np.uint8(3))
    assert sampling == Sampling(temperature=0.5, top_k=5, seed=3)
    assert [type(value) for value in sampling.given.values()] == [float, int, int]


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Sampling) if field.name != "processors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", True, [1]])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(RequestError, match=f"{name} is .*: give a"):
        Sampling(**{name: value})


@pytest.mark.parametrize(
    ("settings", "samples"),
    [
        ({}, None),
        ({"seed": 3, "repetition_penalty": 1.2, "presence_penalty": 1.0}, None),
        ({"temperature": 0}, False),
        ({"temperature": 0, "top_k": 5}, False),
        ({"temperature": 0.1}, True),
        ({"top_k": 0}, True),
        ({"min_p": 0.0}, True),
    ],
)
def test_whether_tokens_are_drawn(settings, samples):
    assert Sampling(**settings).samples is samples
    assert Sampling(**settings).given == settings


def test_a_sampling_does_not_change_and_has_no_room_for_more():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling().seed = 3
    assert not hasattr(Sampling(), "__dict__")
    assert Sampling(processors=[abs]) == Sampling(processors=(abs,)) != Sampling()
