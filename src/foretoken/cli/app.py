"""All commands, a module for each group of them."""

from __future__ import annotations

import logging

import typer

from foretoken.cli import bench, corpus, generate, history, replay, tune
from foretoken.cli.console import Warnings

app = typer.Typer(
    help="Makes a language model that you already run answer faster, with the same text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (generate.generate, generate.compare, generate.check, replay.replay, tune.tune):
    app.command()(command)
app.add_typer(bench.app, name="bench")
app.add_typer(corpus.app, name="corpus")
app.add_typer(history.app, name="history")
logging.getLogger("foretoken").addHandler(Warnings())
