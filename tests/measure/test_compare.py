"""One prompt plain and drafted: which turn the table shows."""

from __future__ import annotations

from typing import Any, cast

import pytest

from foretoken import DecodeStats
from foretoken.api.answer import Result
from foretoken.measure.compare import compare


class Recorded:
    """A model whose answers took known seconds, each with as many steps."""

    def __init__(self, plain: list[float], drafted: list[float], tokens: dict[float, tuple[int, ...]]) -> None:
        self.plain, self.drafted, self.tokens = iter(plain), iter(drafted), tokens

    def generate(self, prompt: Any, **options: Any) -> Result:
        seconds = next(self.plain if options["drafter"] == "none" else self.drafted)
        stats = DecodeStats(tokens=3, steps=int(seconds), seconds=seconds)
        return Result("", self.tokens.get(seconds, (1, 2, 3)), 1, "length", stats)


@pytest.mark.parametrize(
    ("plain", "drafted", "shown"),
    [([9.0, 5.0, 7.0], [4.0, 30.0, 3.0], (7.0, 4.0)), ([8.0, 6.0], [2.0, 3.0], (6.0, 2.0)), ([5.0], [1.0], (5.0, 1.0))],
)
def test_seconds_and_steps_are_those_of_the_turn_with_the_median_time(plain, drafted, shown):
    lm = cast(Any, Recorded(plain, drafted, {}))
    row = compare(lm, "a prompt", "mixed", len(plain), {})
    assert (row.plain.stats.seconds, row.drafted.stats.seconds) == shown
    assert (row.plain.stats.steps, row.drafted.stats.steps) == shown
    assert row.speed == shown[0] / shown[1] and row.identical


def test_a_difference_in_any_turn_counts():
    lm = cast(Any, Recorded([5.0, 5.0, 5.0], [1.0, 2.0, 3.0], {3.0: (1, 2, 4)}))
    assert not compare(lm, "a prompt", "mixed", 3, {}).identical
