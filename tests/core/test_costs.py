"""What rows cost: the curve, against numpy's interpolation, and what is learned on top of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretoken.core.costs import CostCurve, LearnedCosts

points = st.dictionaries(st.integers(1, 300), st.floats(1e-6, 1e3), min_size=1, max_size=8)


@given(points, st.integers(1, 300))
def test_between_known_points_are_straight_lines(seconds, num_rows):
    rows = sorted(seconds)
    expected = np.interp(num_rows, [0, *rows], [0.0, *(seconds[n] for n in rows)])
    if num_rows <= rows[-1]:
        assert CostCurve(seconds).seconds(num_rows) == pytest.approx(expected)
    assert CostCurve(seconds).as_dict() == seconds and list(CostCurve(seconds).as_dict()) == rows


def test_every_known_point_is_kept_exactly():
    """Learning takes numbers of rows together; what somebody measured is not."""
    seconds = {n: 10.0 + (n % 3) for n in range(1, 17)}
    assert [CostCurve(seconds).seconds(n) for n in seconds] == list(seconds.values())


def test_beyond_the_last_point_the_last_line_goes_on_and_never_down():
    assert CostCurve({1: 1.0, 9: 1.4}).seconds(17) == pytest.approx(1.8)
    assert CostCurve({1: 1.0, 9: 0.8}).seconds(17) == 0.8
    assert CostCurve({1: 2.0}).seconds(5) == 10.0, "of a single point, each row costs as much as the first"


def test_without_points_nothing_is_known():
    curve = CostCurve()
    assert (curve.seconds(3), curve.most_rows, curve.row_price(), curve.as_dict()) == (0.0, 0, None, {})


@pytest.mark.parametrize("share", [0.0, 0.05, 3.0])
def test_a_linear_curve_is_a_line_as_far_as_any_draft_goes(share):
    curve = CostCurve.linear(share)
    assert [curve.seconds(n) for n in (1, 2, 1025)] == pytest.approx([1, 1 + share, 1 + 1024 * share])
    assert curve.most_rows > 1025 and curve.row_price() == pytest.approx(share)


def test_a_row_has_a_price_once_enough_of_them_are_known():
    assert CostCurve({1: 1.0, 2: 1.5}).row_price() is None
    assert CostCurve({1: 2.0, 17: 4.0}).row_price() == pytest.approx(1 / 16)


@given(st.sets(st.sampled_from([1, 2, 4, 8, 16, 32, 64]), min_size=1), st.integers(1, 200), st.data())
def test_learning_begins_with_what_is_known(rows, num_rows, data):
    curve = CostCurve({n: data.draw(st.floats(0.1, 10)) for n in sorted(rows)})
    learned = LearnedCosts(curve)
    assert learned.seconds(num_rows) == pytest.approx(curve.seconds(num_rows))
    assert learned.as_dict() == curve.as_dict() and learned.most_rows == curve.most_rows
    assert learned.num_plain == (3 if 1 in rows else 0)


def test_what_is_learned_takes_the_place_of_what_was_known_and_leaves_the_curve_alone():
    curve = CostCurve({1: 1.0, 8: 2.0})
    learned = LearnedCosts(curve)
    for _ in range(7):
        learned.add(8, 4.0)
    assert learned.seconds(8) == 4.0 and curve.seconds(8) == 2.0


def test_what_was_known_counts_in_proportion_to_the_steps_that_were_tried():
    """Everything takes 1.5 times as long as when the curve was measured: two rows still cost four times as much."""
    learned = LearnedCosts(CostCurve({1: 1.0, 2: 4.0, 8: 6.0}))
    for _ in range(3):
        learned.add(1, 1.5)
    assert [learned.seconds(rows) for rows in (1, 2, 8)] == [1.5, 6.0, 9.0] and learned.median(7) == 9.0
    for _ in range(3):
        learned.add(8, 7.5)
    assert [learned.seconds(rows) for rows in (1, 2, 8)] == [1.5, 6.0, 7.5]


def test_what_was_learned_long_ago_makes_room_for_what_was_known():
    """A curve that was measured is not to be paid for again."""
    learned = LearnedCosts(CostCurve({1: 1.0, 2: 4.0}))
    for _ in range(3):
        learned.add(2, 2.0)
    assert learned.seconds(2) == 2.0
    for _ in range(1 + LearnedCosts.MAX_AGE):
        learned.add(1, 1.0)
    expected, least = learned.bounds(2)
    assert expected == least == [1.0, 4.0]
