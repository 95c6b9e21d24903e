"""Measuring what rows cost, with targets that say how long they take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from foretoken import Draft
from foretoken.core.measuring import AT_LEAST, ROWS, TIMES, measure_costs
from foretoken.engines.toy import ToyTarget


class Timed(ToyTarget):
    """A target on a clock of its own: a forward over n rows takes what ``cost`` says.

    The first over n takes ``prepare`` more, and each that follows one over another number ``switch``.
    """

    def __init__(self, cost, *, prepare=0.0, switch=0.0, trees=True, depth=None, max_length=None):
        super().__init__(max_length=max_length)
        self.switch, self.last_rows = switch, 0
        self.cost, self.prepare, self.supports_trees, self._depth = cost, prepare, trees, depth
        self.now, self.met, self.scored = 0.0, set(), []

    @property
    def max_draft_depth(self):
        return self._depth

    def prefill(self, prompt):
        self.now += self.cost(len(prompt))
        return super().prefill(prompt)

    def score(self, last_token, draft: Draft):
        rows = 1 + len(draft)
        assert self.supports_trees or draft.is_chain
        assert self._depth is None or max(draft.depths, default=0) <= self._depth
        assert self.max_length is None or len(self.cache) + 1 + max(draft.depths, default=0) <= self.max_length
        self.now += self.cost(rows) + (0 if rows in self.met else self.prepare)
        self.now += 0 if rows == self.last_rows else self.switch
        self.last_rows = rows
        self.met.add(rows)
        self.scored.append(draft)
        return super().score(last_token, draft)


def line(rows: int) -> float:
    return 0.001 + 0.0001 * rows


@pytest.fixture
def measured(monkeypatch):
    """Measure a target by its own clock."""

    def measured(target: Timed) -> dict[int, float]:
        monkeypatch.setattr("foretoken.core.measuring.time", SimpleNamespace(perf_counter=lambda: target.now))
        monkeypatch.setattr(target, "clock", lambda: target.now, raising=False)
        return measure_costs(target).as_dict()

    return measured


@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize("prepare", [0.0, 0.05])
def test_the_times_are_what_forwards_take_and_not_what_is_prepared_once(measured, trees, prepare):
    target = Timed(line, trees=trees, prepare=prepare)
    assert measured(target) == pytest.approx({rows: line(rows) for rows in sorted(ROWS)})
    assert len(target.scored) == 2 + len(ROWS) * (1 + 2 * TIMES) - 1 and target.now < 1.0
    assert any(not draft.is_chain for draft in target.scored) == trees
    assert max(max(draft.depths, default=0) for draft in target.scored) == (1 if trees else max(ROWS) - 1)


def test_plain_steps_are_measured_after_plain_ones_and_drafts_after_plain_ones(measured):
    found = measured(Timed(line, switch=0.0005))
    assert found == pytest.approx({rows: line(rows) + (0.0005 if rows > 1 else 0) for rows in sorted(ROWS)})


def test_a_slow_machine_is_measured_coarsely_and_a_very_slow_one_at_two_points(measured):
    slow, very_slow = Timed(lambda rows: 0.1 + 0.001 * rows), Timed(lambda rows: 0.9 + 0.01 * rows)
    found = measured(slow)
    assert AT_LEAST < len(found) < len(ROWS) and max(found) == max(ROWS), "the coarse picture comes first"
    assert slow.now < 1.0 + 3 * slow.cost(1) + 2 * slow.cost(max(ROWS))
    assert sorted(measured(very_slow)) == [1, 16] and len(very_slow.scored) == 1 + 2 * AT_LEAST


@pytest.mark.parametrize(("trees", "rows"), [(True, list(ROWS)), (False, [1, 4, 2])])
def test_no_draft_is_deeper_than_the_target_takes(measured, trees, rows):
    assert list(measured(Timed(line, trees=trees, depth=5))) == sorted(rows)
    assert list(measured(Timed(line, trees=trees, depth=0))) == [1]


@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize("max_length", [2, 3, 9, 40])
def test_no_text_is_longer_than_the_target_holds(measured, trees, max_length):
    found = measured(Timed(line, trees=trees, max_length=max_length))
    deepest = max_length - 2  # after a prompt of one token and the one that comes with the draft
    assert list(found) == sorted(rows for rows in ROWS if (min(1, rows - 1) if trees else rows - 1) <= deepest)
    assert found == pytest.approx({rows: line(rows) for rows in found})


def test_a_clock_that_stands_still_gives_times_above_zero(measured):
    assert all(seconds > 0 for seconds in measured(Timed(lambda rows: 0.0)).values())


def test_what_else_the_machine_does_hides_no_cost(measured):
    """Two of three forwards take longer than they should, by more or less."""
    calls = iter(range(10_000))
    found = measured(Timed(lambda rows: line(rows) + (0.005 * (call % 3) if (call := next(calls)) % 3 else 0.0)))
    assert found == pytest.approx({rows: line(rows) for rows in sorted(ROWS)})


def test_more_rows_never_take_less(measured):
    """A single row meets a busy machine every time, such as at the beginning."""
    assert measured(Timed(lambda rows: 0.02 if rows == 1 else line(rows)))[1] == pytest.approx(line(2))
