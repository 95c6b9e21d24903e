"""Threads: as few as are no slower, and never others than a user has said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import foretoken
from foretoken.cli.input import load_model
from foretoken.cli.options import DraftOptions, ModelOptions
from foretoken.engines.fewest_threads import SAID_BY, fewest
from foretoken.engines.transformers import threads
from foretoken.engines.transformers.threads import settle_threads


@pytest.fixture
def two_threads(monkeypatch) -> Iterator[None]:
    before = torch.get_num_threads()
    for name in SAID_BY:
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("one", "many", "chosen"), [(0.01, 0.02, 1), (0.01, 0.01, 1), (0.02, 0.01, 4), (1.0, 0.3, 4), (0.001, 0.3, 4)]
)
def test_one_thread_where_more_are_no_faster(one, many, chosen):
    assert fewest(4, {1: one, 4: many}.__getitem__) == chosen


def test_a_large_model_is_not_measured():
    asked: list[int] = []
    assert fewest(4, lambda number: asked.append(number) or 30.0) == 4
    assert asked == [4]


def test_a_command_measures_and_the_library_leaves_the_process_alone(two_threads, monkeypatch):
    monkeypatch.setattr(threads, "fewest", lambda many, seconds: 1 if seconds(1) and seconds(many) else many)
    foretoken.load("tiny", background=None).generate("a", max_new_tokens=2)
    assert torch.get_num_threads() == 2
    load_model(ModelOptions("tiny"), DraftOptions(background="none"))
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("name", SAID_BY)
def test_what_a_user_has_said_stays(two_threads, monkeypatch, name):
    monkeypatch.setenv(name, "2")
    monkeypatch.setattr(threads, "fewest", lambda many, seconds: 1)
    settle_threads(foretoken.load("tiny", background=None).model)
    assert torch.get_num_threads() == 2
