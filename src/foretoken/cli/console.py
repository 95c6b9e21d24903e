"""How the commands write: answers unchanged, JSON for scripts, everything else to standard error."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from rich.console import Console

out = Console(soft_wrap=True, markup=False, highlight=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, markup=False, highlight=False, emoji=False)

ACCEPTED, PLAIN = "\x1b[1;32m", "\x1b[0m"  # how an accepted guess is shown

# What a terminal obeys or what turns the order of letters: control characters, marks of direction, separators of lines,
# and halves of characters.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    r"""The text with a backslash form for whatever a terminal would obey.

    >>> print(plain("a\x1b[31mb\n"))
    a\x1b[31mb\n
    """
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def write(text: str, accepted: bool = False) -> None:
    """Write an answer's text at once and unchanged: tabs and control characters belong to it."""
    sys.stdout.write(f"{ACCEPTED}{text}{PLAIN}" if accepted and out.is_terminal else text)
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """Print what a script will read."""
    write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def plain(text: str) -> str:
    """Text that others may have made, fit for a terminal: what is no visible character stands as a backslash escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
