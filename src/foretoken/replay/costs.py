"""The costs of forwards as the option ``--costs`` names them."""

from __future__ import annotations

import os
from pathlib import Path

from foretoken.core.costs import CostCurve
from foretoken.core.errors import ForetokenError
from foretoken.memory.costs import read_costs

MAX_SHARE = 1e6  # of a row, that a further one costs

FORMS = '"flat", "linear:0.05" or a JSON file {"rows": [1, 2, 4, 8, 16], "milliseconds": [...]}'


def parse_costs(form: str) -> CostCurve:
    """Costs from their word form or file.

    Args:
        form: "flat", "linear:SHARE" or the path of a file that ``foretoken bench costs`` wrote.

    Raises:
        ForetokenError: If it is neither, or does not say what one row and more cost.
    """
    if form == "flat":
        return CostCurve.linear(0.0)
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
        return CostCurve.linear(slope)
    if not os.path.exists(form):
        raise ForetokenError(f"There is no file {form!r} of costs; costs are {FORMS}.")
    return read_costs(Path(form))
