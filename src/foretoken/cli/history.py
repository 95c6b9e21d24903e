"""``foretoken history``: show, delete, export and import the answers that are kept between runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from foretoken.cli.console import err, out, plain, print_json
from foretoken.cli.input import chosen_history
from foretoken.cli.options import HISTORY, AsJson
from foretoken.core.errors import RequestError

if TYPE_CHECKING:
    from foretoken.memory.history import History, NamespaceStats

HistoryFile = Annotated[
    Path | None, typer.Option("--history", help="File of the history.", show_default=f"${HISTORY}, or the usual one")
]
Namespace = Annotated[
    str | None, typer.Option(help="Use only the answers of this namespace.", callback=lambda name: checked(name))
]

MAX_NAMED = 20  # more bad lines than this are only counted

app = typer.Typer(no_args_is_help=True)


@app.command()
def stats(
    history: HistoryFile = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Show how many answers are kept, in a row for each namespace and tokenizer."""
    with open_history(history) as answers:
        rows = [row for row in answers.stats() if namespace in (None, row.namespace)]
    if as_json:
        print_json([as_dict(row) for row in rows])
    elif rows:
        out.print(stats_table(rows))
    else:
        err.print("Nothing is remembered.", style="dim")


@app.command()
def clear(
    history: HistoryFile = None,
    namespace: Namespace = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete the answers of every namespace.")] = False,
) -> None:
    """Delete answers for good."""
    if everything == (namespace is not None):
        raise RequestError("Deleting is for one namespace or for all: give either --namespace or --all.")
    with open_history(history) as answers:
        err.print(f"{counted(answers.clear(namespace))} deleted.", style="dim")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="File to write JSON lines to; compressed if its name ends in .gz.")],
    history: HistoryFile = None,
    namespace: Namespace = None,
) -> None:
    """Save answers to a file, oldest first."""
    with open_history(history) as answers:
        err.print(f"{counted(answers.export(file, namespace))} exported.", style="dim")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="File that export wrote.")],
    history: HistoryFile = None,
    namespace: Namespace = None,
) -> None:
    """Add the answers of a file. Lines that hold no answer are reported and skipped."""
    with open_history(history) as answers:
        result = answers.import_(file, namespace)
    err.print(f"{counted(result.answers)} imported.", style="dim")
    if bad := result.bad_lines:
        named = ", ".join(map(str, bad[:MAX_NAMED]))
        named += f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
        lines = (
            f"1 line was skipped: line {named}" if len(bad) == 1 else f"{len(bad)} lines were skipped: lines {named}"
        )
        err.print(f"{lines}.", style="yellow")


def checked(namespace: str | None) -> str | None:
    """The namespace that was named.

    Raises:
        ForetokenError: If its name is empty, as that of a variable which is not set, or no text.
    """
    if namespace == "":
        raise RequestError("The namespace is empty: name one, or leave out --namespace.")
    if namespace is not None:
        from foretoken.memory.history import check_names

        check_names(namespace)
    return namespace


def open_history(path: Path | None) -> History:
    """The history, which here says what is wrong instead of going on without."""
    from foretoken.memory.history import History  # numpy, which no help needs

    chosen = chosen_history(path)
    return History(None if isinstance(chosen, bool) else chosen, strict=True)


def counted(answers: int) -> str:
    """How many answers, in words."""
    return "1 answer" if answers == 1 else f"{answers} answers"


def as_dict(row: NamespaceStats) -> dict[str, str | int]:
    """A row for scripts."""
    return {
        "namespace": row.namespace,
        "fingerprint": row.fingerprint,
        "answers": row.answers,
        "tokens": row.tokens,
        "bytes": row.bytes,
        "oldest": datetime.fromtimestamp(row.oldest, UTC).isoformat(),
        "newest": datetime.fromtimestamp(row.newest, UTC).isoformat(),
    }


def stats_table(rows: Sequence[NamespaceStats]) -> Table:
    """A row for each namespace and tokenizer, in the time of this place."""
    table = Table("namespace", "tokenizer", title="answers that are remembered")
    for heading in ("answers", "tokens", "bytes", "oldest", "newest"):
        table.add_column(heading, justify="right")
    for row in rows:
        oldest, newest = (datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M") for when in (row.oldest, row.newest))
        table.add_row(
            plain(row.namespace),
            plain(row.fingerprint),
            f"{row.answers:,}",
            f"{row.tokens:,}",
            f"{row.bytes:,}",
            oldest,
            newest,
        )
    return table
