"""What a forward over so many rows costs: what decides how much drafting pays."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from foretoken.core.errors import ForetokenError
from foretoken.texts import read_text

MAX_FILE = 1 << 20  # characters
MAX_SHARE = 1e6  # of a row, that a further one costs
LEAST, MOST = 1e-9, 1e9  # milliseconds of a forward; sums of many stay far from the ends of what a float holds

FORMS = '"flat", "linear:0.05" or a JSON file {"rows": [1, 2, 4, 8, 16], "milliseconds": [...]}'


@dataclass(frozen=True)
class Costs:
    """The time of one forward over n rows, the last committed token's and the drafted ones.

    Args:
        rows: Measured numbers of rows, rising from 1.
        times: The time of each, in any unit.
        slope: The time of each row beyond the last measured one; None where nothing is known of them.

    >>> costs = Costs((1, 2, 4), (10.0, 11.0, 15.0))
    >>> costs(2), costs(3), costs.max_rows
    (11.0, 13.0, 4)
    >>> Costs.read("linear:0.05")(11)
    1.5
    """

    rows: tuple[int, ...]
    times: tuple[float, ...]
    slope: float | None = None

    @classmethod
    def read(cls, form: str) -> Costs:
        """Costs from their word form or file.

        Raises:
            ForetokenError: If it is neither, or does not say what one row and more cost.
        """
        if form == "flat":
            return cls((1,), (1.0,), 0.0)
        word, _, share = form.partition(":")
        if word == "linear":
            try:
                slope = float(share)
            except ValueError:
                slope = -1.0
            if not 0 <= slope <= MAX_SHARE:
                raise ForetokenError(
                    f"The costs {form!r} lack the share that a further row costs, from 0 to {MAX_SHARE:g}, as in "
                    "linear:0.05."
                )
            return cls((1,), (1.0,), slope)
        return cls._from_file(Path(form))

    @classmethod
    def _from_file(cls, path: Path) -> Costs:
        if not os.path.exists(path):
            raise ForetokenError(f"There is no file {str(path)!r} of costs; costs are {FORMS}.")
        text = read_text(path, MAX_FILE)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ForetokenError(f"The costs {str(path)!r} could not be read: the file is not JSON.") from error
        fields = value if isinstance(value, dict) else {}
        rows, times = _numbers(fields.get("rows")), _numbers(fields.get("milliseconds"))
        if not len(rows) == len(times) >= 2:
            raise ForetokenError(
                f"The costs {str(path)!r} need rows and milliseconds, two equally long lists of 2 numbers or more, of "
                f"milliseconds between {LEAST:g} and {MOST:g}."
            )
        if rows[0] != 1 or any(row != int(row) for row in rows) or any(a >= b for a, b in pairwise(rows)):
            raise ForetokenError(f"The costs {str(path)!r} need rows that are whole numbers and rise from 1.")
        return cls(tuple(map(int, rows)), tuple(times))

    @property
    def max_rows(self) -> float:
        """The most rows whose cost is known."""
        return self.rows[-1] if self.slope is None else math.inf

    def __call__(self, rows: int) -> float:
        """The time of a forward over ``rows``, between two measured ones on the line that joins them."""
        if rows >= self.rows[-1]:
            return self.times[-1] + (rows - self.rows[-1]) * (self.slope or 0.0)
        right = next(i for i, measured in enumerate(self.rows) if measured > rows)
        low, high = self.rows[right - 1], self.rows[right]
        share = (rows - low) / (high - low)
        return self.times[right - 1] * (1 - share) + self.times[right] * share


def _numbers(value: Any) -> list[float]:
    """A list of numbers between ``LEAST`` and ``MOST``; an empty one where the value is none."""
    fits = isinstance(value, list) and all(
        isinstance(number, int | float) and not isinstance(number, bool) and LEAST <= number <= MOST for number in value
    )
    return list(map(float, value)) if fits else []
