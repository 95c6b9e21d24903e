"""All commands, a module for each group of them."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from foretoken import __version__
from foretoken.cli import bench, check, compare, corpus, generate, history, replay, tune
from foretoken.cli.console import Warnings, out

app = typer.Typer(
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (generate.generate, compare.compare, check.check, replay.replay, tune.tune):
    app.command()(command)
app.add_typer(bench.app, name="bench")
app.add_typer(corpus.app, name="corpus")
app.add_typer(history.app, name="history")
logging.getLogger("foretoken").addHandler(Warnings())


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Make a language model that you already run answer faster, with the same text."""
    if version:
        out.print(f"foretoken {__version__}")
        raise typer.Exit
