"""Checks of the numbers that callers give: any library's number becomes Python's own, anything else is refused."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

from foretoken.core.errors import RequestError


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """A whole number as an int, Python's or NumPy's; a fraction would never be reached by counting.

    Args:
        name: What the number is called.
        value: What was given.
        least: The smallest that is allowed. If None, any is.
        most: The largest that is allowed, if there is a least. If None, any is.

    Raises:
        ForetokenError: If it is no whole number, or out of the range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        bounds = "" if least is None else f" from {least} on" if most is None else f" from {least} to {most}"
        raise RequestError(f"{name} is {value!r:.100}: give a whole number{bounds}.")
    return number


def real(name: str, value: Any) -> float:
    """A finite number, as a float.

    Raises:
        ForetokenError: If it is no number, infinite or not a number.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise RequestError(f"{name} is {value!r:.100}: give a finite number.")
