"""How the commands write: answers unchanged, JSON for scripts, everything else to standard error."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.status import Status
from rich.table import Table
from rich.text import Text

ACCEPTED, PLAIN = "\x1b[1;32m", "\x1b[0m"  # how an accepted guess is shown

NAME_WIDTH = 10  # columns that a name gets in a table, however narrow the terminal
WIDE = 10_000

# What a terminal obeys or what turns the order of letters: control characters, marks of direction, separators of lines,
# and halves of characters.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    r"""The text with a backslash form for every character that a terminal would obey.

    >>> print(plain("a\x1b[31mb\n"))
    a\x1b[31mb\n
    """
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class PlainConsole(Console):
    """A console that shows every string as it is: no markup, no control characters, no number cut short."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=True, markup=False, highlight=False, emoji=False)
        if self.width < 1:
            self.width = 80  # COLUMNS=0 means that nobody knows

    @property
    def is_dumb_terminal(self) -> bool:
        """Whether the terminal obeys no codes, or does not say what it is."""
        return super().is_dumb_terminal or (self.is_terminal and not os.environ.get("TERM"))

    def render_str(self, text: str, **options: Any) -> Text:
        """Every printed string passes here, the cells and titles of tables included."""
        return super().render_str("\n".join(map(plain, text.split("\n"))), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        for table in objects:
            if isinstance(table, Table):
                self._keep_numbers(table)
        super().print(*objects, **options)

    def status(self, status: RenderableType, **options: Any) -> Status:
        options.setdefault("spinner", "dots" if self.encoding.startswith("utf") else "line")
        return super().status(Text(plain(status)) if isinstance(status, str) else status, **options)

    def _keep_numbers(self, table: Table) -> None:
        """Make a table as wide as its numbers; a narrower terminal breaks its lines, but no number is cut short."""
        names = []
        for column in table.columns:
            if column.no_wrap or column.justify == "right":
                column.no_wrap = True
                lines = (line for cell in (column.header, *column.cells) for line in str(cell).split("\n"))
                column.min_width = max(map(cell_len, lines))
            else:
                names.append(column)
        limits = [column.max_width for column in names]
        for column in names:
            column.max_width = NAME_WIDTH
        least = self.measure(table, options=self.options.update_width(WIDE)).minimum
        for column, limit in zip(names, limits, strict=True):
            column.max_width = limit
        if least > self.width:
            table.width = least


out = PlainConsole()
err = PlainConsole(stderr=True)


def write(text: str, accepted: bool = False) -> None:
    """Write an answer's text at once and unchanged: tabs and control characters belong to it."""
    coloured = accepted and out.is_terminal and not out.is_dumb_terminal and not out.no_color
    sys.stdout.write(f"{ACCEPTED}{text}{PLAIN}" if coloured else text)
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """Print what a script will read; the value is the same with and without what is escaped here."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(value, ensure_ascii=not unicode, indent=2)
    lines = (CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", line) for line in text.split("\n"))
    write("\n".join(lines) + "\n")


class Warnings(logging.Handler):
    """Prints the package's warnings, which may quote what a file holds."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(f"foretoken: {record.getMessage()}", style="yellow")
