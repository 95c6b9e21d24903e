"""What a forward over several rows costs on this machine, measured with a few forwards."""

from __future__ import annotations

import math
import time
from itertools import accumulate

from foretoken.core.contracts import Target, clock_of, reread_by
from foretoken.core.costs import MIN_SECONDS, CostCurve
from foretoken.core.draft import Draft

ROWS = (1, 16, 4, 64, 2, 8, 32)  # the coarse picture first, should there be no time for all
AT_LEAST = 2  # of these numbers of rows, however long they take
TIMES = 6  # that each is measured at most, after one forward that prepares things
MAX_SECONDS = 1.0
TOKEN = 0  # every model has it, and a forward takes as long whatever it reads
TEXT, TEXT_SECONDS = 256, 0.25  # tokens that forwards see before them, and what single steps over them may take
QUICK = 0.02  # seconds of a step, from which on there is no text to speak of


def measure_costs(target: Target, max_seconds: float = MAX_SECONDS) -> CostCurve:
    """Run forwards over several numbers of rows, for about a second.

    A forward that takes very long may take it longer: two numbers of rows are measured, each with two forwards, if the
    target verifies that many.

    Args:
        target: A target of its own, not one that is answering.
        max_seconds: When to begin with no further number of rows.

    Returns:
        The least times, since whatever else the machine does only adds to them. More rows never take less: if they did
        once, the time of fewer rows was an outlier. Single rows are always among them.
    """
    least: dict[int, float] = {}
    ruler = _Ruler(target)
    ends_at = time.perf_counter() + max_seconds
    for turn in range(TIMES):
        for num_rows in ROWS:
            if len(least) >= AT_LEAST and time.perf_counter() >= ends_at:
                break
            if not ruler.fits(num_rows):
                continue
            if turn == 0:
                ruler.seconds(num_rows)  # a library may prepare something for this number of rows
            if least.get(1, math.inf) < QUICK:
                ruler.seconds(1)  # as in use: what comes before is mostly plain, and another size is prepared anew
            least[num_rows] = min(ruler.seconds(num_rows), least.get(num_rows, math.inf))
    descending = sorted(least, reverse=True)
    times = accumulate((least[num_rows] for num_rows in descending), min)
    return CostCurve({rows: max(MIN_SECONDS, seconds) for rows, seconds in zip(descending, times, strict=True)})


class _Ruler:
    """A target with a text, which starts again when no further token fits.

    Where forwards are quick, attention over the text is a good part of them, so that there has to be one. Where they
    are slow it is a small part, and a text would take long to read.
    """

    def __init__(self, target: Target) -> None:
        self.target, self._clock = target, clock_of(target)
        self._text = 1
        self._begin()
        if self.fits(1) and self.seconds(1) < TEXT_SECONDS:  # the first prepares things
            step = max(self.seconds(1), MIN_SECONDS)
            if step < QUICK:
                self._text = max(1, int(min(TEXT, self._room() // 8, TEXT_SECONDS / step)))
                self._begin()

    def fits(self, num_rows: int) -> bool:
        """Whether the target verifies a draft of so many rows, the last token's among them."""
        if self._room() < self._depth(num_rows):
            self._begin()
        return self._room() >= self._depth(num_rows)

    def seconds(self, num_rows: int) -> float:
        """How long a step over so many rows takes, its choice with it."""
        if not self.fits(num_rows):
            raise ValueError(f"the target does not verify {num_rows} rows")
        num_guesses = num_rows - 1
        star = Draft((TOKEN,) * num_guesses, (-1,) * num_guesses)
        draft = star if self.target.supports_trees else Draft.chain(star.tokens)
        started = self._clock()
        self.target.score(TOKEN, draft).choose(0)
        # What a target would read again, were it rejected, is kept: the next forward is to have the rows asked for.
        path = () if reread_by(self.target) is None else range(num_guesses)
        self.target.keep(path)
        seconds = self._clock() - started
        self._length += 1 + len(path)
        return seconds

    def _begin(self) -> None:
        self.target.prefill([TOKEN] * self._text)
        self._length = self._text  # tokens that the cache holds

    def _depth(self, num_rows: int) -> int:
        return min(1, num_rows - 1) if self.target.supports_trees else num_rows - 1

    def _room(self) -> float:
        """How deep a draft may be now, after the token that comes with it."""
        length, depth = self.target.max_length, self.target.max_draft_depth
        room = math.inf if length is None else length - self._length - 1
        return room if depth is None else min(room, depth)
