"""What a self-test found of a model on this machine: kept in the cache folder beside its costs, as numbers only."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foretoken.core.errors import ForetokenError
from foretoken.files import writing
from foretoken.memory.costs import path_of
from foretoken.texts import read_text

MAX_FILE = 1 << 16  # characters
MOST = 1 << 20  # of any number in the file
CHEAP = 0.05  # of a plain step, as much as exactness may cost if nobody insists


@dataclass(frozen=True)
class SelfTest:
    """Whether a row of a forward is the same in every bit whatever stands beside it.

    Args:
        tested: The numbers of rows that whole forwards were tried with, rising.
        widths: The numbers of rows that give a row the same bits, rising; none where there are too few to draft with.
        equal: How many rows of these forwards were bit-equal to those of forwards that draft nothing.
        rows: How many were compared.
        cost: What exactness adds to a plain step, as a share of it; negative where it is quicker.
        seconds: What such a step takes. 0 where it was not kept.
    """

    tested: tuple[int, ...]
    widths: tuple[int, ...]
    equal: int
    rows: int
    cost: float
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether there are widths to draft with, and every row was bit-equal."""
        return bool(self.widths) and 0 < self.rows == self.equal

    @property
    def is_cheap(self) -> bool:
        """Whether it passed and costs so little that nobody need insist on exactness."""
        return self.passed and self.cost <= CHEAP

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


_KNOWN: dict[Path, SelfTest] = {}  # of this process, by the file that keeps it


def self_test_of(key: str, run: Callable[[], SelfTest]) -> SelfTest:
    """What the self-test of a model finds here. The first call for a model runs it.

    A file that cannot be read or written is no fault: the test runs again.

    Args:
        key: Tells the model apart from others, with the device, the threads and the libraries.
        run: Runs the test.
    """
    path = path_of("exact", key)
    if path not in _KNOWN:
        try:
            _KNOWN[path] = read_self_test(path)
        except ForetokenError:
            found = _KNOWN[path] = run()
            with suppress(ForetokenError), writing(path, folders=True) as file:
                file.write(json.dumps(found.as_dict()).encode() + b"\n")
    return _KNOWN[path]


def read_self_test(path: Path) -> SelfTest:
    """What a file says that ``self_test_of`` wrote.

    Raises:
        ForetokenError: If there is no such file, or it says something else.
    """
    text = read_text(path, MAX_FILE)
    try:
        value = json.loads(text)
        found = SelfTest(
            _counts(value["tested"]),
            _counts(value["widths"]),
            value["equal"],
            value["rows"],
            value["cost"],
            value["seconds"],
        )
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise ForetokenError(f"The self-test {str(path)!r} could not be read: it is not what was written.") from error
    counts = _is_count(found.equal) and _is_count(found.rows) and found.equal <= found.rows
    numbers = (found.cost, found.seconds)
    if not counts or not all(isinstance(number, float) and abs(number) <= MOST for number in numbers):
        raise ForetokenError(f"The self-test {str(path)!r} could not be read: its numbers do not fit together.")
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST


def _counts(value: Any) -> tuple[int, ...]:
    """Rising whole numbers.

    Raises:
        ValueError: If the value is not a list of such.
    """
    if not isinstance(value, list) or not all(map(_is_count, value)) or sorted(set(value)) != value:
        raise ValueError("no rising whole numbers")
    return tuple(value)
