"""Numbers that people give, of whatever library, as Python's own; what is none is refused with a sentence."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

from foretoken.core.errors import ForetokenError


def whole(name: str, value: Any) -> int:
    """A count, as an int: Python's or numpy's; a fraction would never be reached by counting.

    Args:
        name: What the number is called.
        value: What was given.

    Raises:
        ForetokenError: If it is no whole number.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise ForetokenError(f"{name} is {value!r}: give a whole number.")


def real(name: str, value: Any) -> float:
    """A finite number, as a float.

    Raises:
        ForetokenError: If it is no number, infinite or not a number.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ForetokenError(f"{name} is {value!r}: give a finite number.")
