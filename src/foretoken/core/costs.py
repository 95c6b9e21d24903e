"""What a step over n rows costs: measured for a model on a machine, and corrected by the steps of an answer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from types import MappingProxyType

MIN_SECONDS = 1e-9  # of a step, where the clock stands still
MOST_ROWS = 1 << 20  # far beyond every draft
PRICED_ROWS = 8  # that must be known before a price is named: the second may cost as much as ten more


class Median:
    """The median of the latest numbers: one that stands out, such as a collection of garbage, does not move it."""

    SAMPLES = 7

    def __init__(self) -> None:
        self._latest: list[float] = []  # not a deque, which takes six times the memory
        self.value = 0.0

    def __len__(self) -> int:
        return len(self._latest)

    def add(self, number: float) -> None:
        """Take one more."""
        self._latest = [*self._latest[1 - self.SAMPLES :], number]
        self.value = sorted(self._latest)[(len(self._latest) - 1) // 2]


class CostCurve:
    """Seconds of a step over n rows: a few known points, and straight lines between them.

    Beyond the last point the last line goes on. From a single point alone each further row costs as much as the first.

    Args:
        seconds: Rows to seconds, or to any other unit of time. Without any, nothing is known.

    >>> curve = CostCurve({1: 0.010, 9: 0.014})
    >>> curve.seconds(5), round(curve.seconds(17), 4), curve.most_rows
    (0.012, 0.018, 9)
    """

    def __init__(self, seconds: Mapping[int, float] = MappingProxyType({})) -> None:
        self._rows = sorted(seconds)
        self._times = [seconds[rows] for rows in self._rows]

    @classmethod
    def linear(cls, share: float) -> CostCurve:
        """Each further row costs this share of the first, which takes 1.

        >>> CostCurve.linear(0.05).seconds(11)
        1.5
        """
        return cls({1: 1.0, MOST_ROWS: 1.0 + share * (MOST_ROWS - 1)})

    @property
    def most_rows(self) -> int:
        """The most rows whose cost is known; 0 for none."""
        return self._rows[-1] if self._rows else 0

    def seconds(self, num_rows: int) -> float:
        """The expected time of a step; 0 if nothing is known."""
        if not self._rows:
            return 0.0
        right = min(bisect_left(self._rows, num_rows), len(self._rows) - 1)
        high, at_high = self._rows[right], self._times[right]
        low, at_low = (self._rows[right - 1], self._times[right - 1]) if right else (0, 0.0)
        slope = (at_high - at_low) / (high - low)
        if num_rows > high:
            slope = max(0.0, slope)
        return at_high + (num_rows - high) * slope

    def row_price(self) -> float | None:
        """What a further row costs, as a share of a step over one; None if too few are known to say."""
        if self.most_rows < PRICED_ROWS:
            return None
        return (self.seconds(self.most_rows) / self.seconds(1) - 1) / (self.most_rows - 1)

    def as_dict(self) -> dict[int, float]:
        """Rows to seconds."""
        return dict(zip(self._rows, self._times, strict=True))


class LearnedCosts:
    """Seconds of a step over n rows, learned from the steps of an answer.

    Steps of 1, 2, 3-4, 5-8, ... rows are taken together, and lines are drawn between their medians as in ``CostCurve``.
    What was not tried for long, or before the time of a single row changed, is forgotten. Where little was tried, what
    was known before counts, made longer or shorter as the steps that were tried are: another program, a hotter
    processor or a longer text slow down all sizes about alike, and what pays depends on their proportions.

    The first step over each number of rows is left out where it took longer than expected: a library may have prepared
    something for just so many rows, which takes as long as many forwards and never comes again.

    Args:
        known: What is known before the first step.
    """

    ENOUGH = 3  # samples, below which a slow one may mislead
    MAX_AGE = 400  # steps
    AS_EXPECTED = 1.05  # times the expected time, since times are noisy

    def __init__(self, known: CostCurve) -> None:
        self._curve = known
        self._known = {_group_of(rows): (rows, seconds) for rows, seconds in known.as_dict().items()}
        self._groups: dict[int, tuple[Median, Median]] = {}  # rows and seconds
        self._last: dict[int, int] = {}  # step in which a group was tried
        self._step = 0
        self._met = set(known.as_dict())  # numbers of rows that there was a step over
        self._table: list[tuple[int, float, bool]] = []  # see ``_points``; empty where it must be made anew

    def add(self, num_rows: int, seconds: float) -> bool:
        """A step over so many rows took so long; whether that says what they cost."""
        self._step += 1
        if num_rows not in self._met:
            self._met.add(num_rows)
            if not seconds <= self.AS_EXPECTED * self.seconds(num_rows):
                return False
        group = _group_of(num_rows)
        if group not in self._groups:
            self._groups[group] = Median(), Median()
        rows, times = self._groups[group]
        before = times.value
        rows.add(num_rows)
        times.add(seconds if seconds > MIN_SECONDS else MIN_SECONDS)
        self._last[group] = self._step
        # Where single rows take another time than before, so do all others.
        changed = group == 0 and before and not 2 / 3 < times.value / before < 3 / 2
        oldest = self._step if changed else self._step - self.MAX_AGE
        for other in [old for old, step in self._last.items() if step < oldest and old]:
            del self._groups[other], self._last[other]
        self._table = []
        return True

    @property
    def num_plain(self) -> int:
        """How many of the samples are of a single row; what was known counts as a few."""
        return (self.ENOUGH if 0 in self._known else 0) + (len(self._groups[0][1]) if 0 in self._groups else 0)

    @property
    def most_rows(self) -> int:
        """The most rows that were tried or known; 0 for none."""
        points = self._points()
        return points[-1][0] if points else 0

    def seconds(self, num_rows: int) -> float:
        """The expected time of a step; 0 where nothing was tried."""
        return self.bounds(num_rows)[0][-1]

    def median(self, num_rows: int) -> float:
        """The time of the steps that are taken together with those of so many rows; 0 for none."""
        group = _group_of(num_rows)
        times = self._groups[group][1] if group in self._groups else Median()
        if group not in self._known or len(times) >= self.ENOUGH:  # as mostly, and this is asked after every step
            return times.value
        return self._known[group][1] * self._slower()

    def _points(self) -> list[tuple[int, float, bool]]:
        """The rows and seconds of each group, and whether they are sure, in the order of the rows."""
        if not self._table:
            slower = self._slower()
            for group in sorted(self._known.keys() | self._groups.keys()):
                times = self._groups[group][1] if group in self._groups else ()
                if group in self._known and len(times) < self.ENOUGH:
                    rows, seconds = self._known[group]
                    self._table.append((rows, seconds * slower, True))
                else:
                    own = self._groups[group]
                    self._table.append((int(own[0].value), own[1].value, len(times) >= self.ENOUGH))
        return self._table

    def _slower(self) -> float:
        """How many times as long as was known the steps take that were tried: those over the fewest rows."""
        for group in sorted(self._known.keys() & self._groups.keys()):
            rows, times = self._groups[group]
            if len(times) >= self.ENOUGH:
                return times.value / self._curve.seconds(int(rows.value))
        return 1.0

    def bounds(self, num_rows: int) -> tuple[list[float], list[float]]:
        """For 1, 2, .. ``num_rows`` rows the expected time, and the least that it may turn out to be.

        The two differ where there are too few samples.
        """
        points = self._points()
        if not points:
            return [0.0] * num_rows, [0.0] * num_rows
        before, time, floor, slope = 0, 0.0, 0.0, 0.0
        expected: list[float] = []
        least: list[float] = []
        for rows, at_rows, enough in points:
            slope = (at_rows - time) / (rows - before)
            line = [*(time + slope * i for i in range(1, min(rows, num_rows + 1) - before)), at_rows]
            floor = at_rows if enough or not floor else min(floor, at_rows)
            expected += line
            least += line if enough else [floor] * len(line)
            before, time = rows, at_rows
            if before >= num_rows:
                break
        slope = max(0.0, slope)
        expected += [time + slope * i for i in range(1, num_rows - before + 1)]
        least += [floor] * (num_rows - before)
        return expected[:num_rows], least[:num_rows]

    def as_dict(self) -> dict[int, float]:
        """Rows to seconds, as learned so far."""
        return {rows: seconds for rows, seconds, _ in self._points()}


def _group_of(num_rows: int) -> int:
    return (num_rows - 1).bit_length()
