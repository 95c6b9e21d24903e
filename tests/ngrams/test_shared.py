"""What the answers of a namespace share: any number of threads, and no draft that waits."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from foretoken import Draft, Step
from foretoken.drafters import NgramMixer
from foretoken.ngrams import arrays
from foretoken.ngrams.shared import SharedNgrams
from helpers import torn

TEXT = [1, 2, 3, 4, 5, 6, 7, 8] * 4


@pytest.fixture
def shared() -> SharedNgrams:
    shared = SharedNgrams()
    shared.add(TEXT)
    return shared


def drafter_of(shared: SharedNgrams) -> NgramMixer:
    drafter = NgramMixer(shared, floor=0.0)
    drafter.begin(TEXT[:5])
    return drafter


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Callable[[], object]], object]]:
    """Run something in another thread, which must not wait for this one."""

    def run(work: Callable[[], object]) -> object:
        results: list[object] = []
        thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
        thread.start()
        thread.join(120)
        assert not thread.is_alive(), "it waits"
        return results[0]

    yield run


def test_a_draft_waits_for_no_other_sequence(shared, elsewhere):
    first, second = drafter_of(shared), drafter_of(shared)
    alone = first.propose([], 8)
    assert len(alone) == 8
    with shared.lock, shared._adding:  # as one that learns and one that adds hold them
        assert elsewhere(lambda: second.propose([], 8)) == alone


def test_learning_and_adding_do_not_wait_for_each_other(shared, elsewhere):
    drafter = drafter_of(shared)
    with shared._adding:
        elsewhere(lambda: drafter.observe(Step(Draft(), (6, 7), None)))
    with shared.lock:
        elsewhere(lambda: shared.add(TEXT))
    assert shared.answers.num_tokens == 2 * (len(TEXT) + 1)


def test_arrays_that_were_replaced_belong_together_for_whoever_still_reads_them(shared):
    drafter, chance = drafter_of(shared), random.Random(0)
    seen: list[arrays.Weights] = []
    for _ in range(400):
        if not any(shared.weights is weights for weights in seen):
            seen.append(shared.weights)
        drafter.observe(Step(Draft(), tuple(chance.choices(range(30), k=8)), None))
    assert len(seen) >= 3
    for weights in seen:
        assert weights.place[: arrays.ROWS].max(initial=-1) < len(weights.own)


def test_whatever_others_write_meanwhile_a_draft_reads_within_its_arrays():
    ended = subprocess.run(
        [sys.executable, torn.__file__, "25"],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(Path(arrays.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0 and "tokens drafted" in ended.stdout, ended.stderr
