"""Results as a Markdown table.

Rich's ``box.MARKDOWN`` is not used: it breaks a row where the terminal ends, and half a row is no Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""A table of rows that share their keys, or most of them, with an empty line before and after.

    >>> print(markdown([{"drafter": "ngram", "speed": 1.3}, {"drafter": "a|b"}]).strip())
    | drafter | speed |
    | --- | --- |
    | ngram | 1.300 |
    | a\|b |  |
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in keys) + " |" for row in rows]
    return "\n" + "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text.replace("\n", " ").replace("|", "\\|")
