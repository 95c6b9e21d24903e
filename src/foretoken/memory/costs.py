"""What a model's forwards cost on this machine: measured once and kept in the cache folder, as numbers only."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from foretoken.core.contracts import Target
from foretoken.core.costs import CostCurve
from foretoken.core.errors import ForetokenError
from foretoken.core.measuring import measure_costs
from foretoken.files import writing
from foretoken.paths import cache_folder
from foretoken.provenance import processor
from foretoken.texts import read_text

MAX_FILE = 1 << 20  # characters
LEAST, MOST = 1e-9, 1e9  # milliseconds of a forward; sums of many stay far from the ends of what a float holds

_KNOWN: dict[Path, CostCurve] = {}  # of this process, by the file that keeps it


def costs_of(cost_key: str, target: Callable[[], Target]) -> CostCurve:
    """What forwards of a model cost here. The first call for a model measures it, in about a second.

    A file that cannot be read or written is no fault: the costs are measured again.

    Args:
        cost_key: Tells the model apart from others that cost something else; see ``Engine.cost_key``.
        target: Gives a target of its own to measure with.
    """
    path = path_of("costs", cost_key)
    if path not in _KNOWN:
        try:
            _KNOWN[path] = read_costs(path)
        except ForetokenError:
            keep_costs(cost_key, measure_costs(target()))
    return _KNOWN[path]


def keep_costs(cost_key: str, costs: CostCurve) -> None:
    """Let these be a model's costs from now on, in this process and, if the cache folder takes them, in later ones."""
    path = path_of("costs", cost_key)
    _KNOWN[path] = costs
    with suppress(ForetokenError):
        write_costs(path, costs, folders=True)


def path_of(kind: str, key: str) -> Path:
    """The file of the cache folder that keeps what was found of a model on this machine.

    Args:
        kind: What was found, such as "costs".
        key: Tells the model apart from others; see ``Engine.cost_key``.
    """
    key = f"{key} {platform.machine()} {processor()} cores={os.cpu_count()}"
    return cache_folder() / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def read_costs(path: Path) -> CostCurve:
    """Costs from a JSON file {"rows": [1, 2, 4], "milliseconds": [20.1, 20.4, 21.0]}.

    Raises:
        ForetokenError: If there is no such file, or it does not say what one row and more cost.
    """
    text = read_text(path, MAX_FILE)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ForetokenError(f"The costs {str(path)!r} could not be read: the file is not JSON.") from error
    fields = value if isinstance(value, dict) else {}
    rows, times = _numbers(fields.get("rows")), _numbers(fields.get("milliseconds"))
    if not len(rows) == len(times) >= 1:
        raise ForetokenError(
            f"The costs {str(path)!r} need rows and milliseconds, two equally long lists of numbers, of "
            f"milliseconds between {LEAST:g} and {MOST:g}."
        )
    if rows[0] != 1 or any(row != int(row) for row in rows) or any(a >= b for a, b in pairwise(rows)):
        raise ForetokenError(f"The costs {str(path)!r} need rows that are whole numbers and rise from 1.")
    return CostCurve({int(row): time / 1000 for row, time in zip(rows, times, strict=True)})


def write_costs(path: Path, costs: CostCurve, folders: bool = False) -> None:
    """Write the file that ``read_costs`` reads.

    Args:
        path: Where it will stand.
        costs: Seconds over rows.
        folders: Make the folders that are missing.

    Raises:
        ForetokenError: If it cannot be written.
    """
    seconds = costs.as_dict()
    fields = {"rows": list(seconds), "milliseconds": [1000 * value for value in seconds.values()]}
    with writing(path, folders=folders) as file:
        file.write(json.dumps(fields).encode() + b"\n")


def _numbers(value: Any) -> list[float]:
    """A list of numbers between ``LEAST`` and ``MOST``. Empty if the value is not such a list."""
    fits = isinstance(value, list) and all(
        isinstance(number, int | float) and not isinstance(number, bool) and LEAST <= number <= MOST for number in value
    )
    return list(map(float, value)) if fits else []
