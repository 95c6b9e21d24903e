"""The command line, a module for each group of commands."""

from __future__ import annotations

import io
import os
import sys

import typer

from foretoken.cli import bench, corpus, generate, history, replay, tune
from foretoken.cli.console import err
from foretoken.core.errors import ForetokenError

app = typer.Typer(
    help="Makes a language model that you already run answer several times faster, with exactly the same text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (generate.generate, generate.compare, generate.check, replay.replay, tune.tune):
    app.command()(command)
app.add_typer(bench.app, name="bench")
app.add_typer(corpus.app, name="corpus")
app.add_typer(history.app, name="history")


def main() -> None:
    """Run the command; a bad input ends in one sentence and status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer is not lost for a character that a terminal lacks
    try:
        app()
    except ForetokenError as error:
        err.print(f"foretoken: {error}", style="red")
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers", "tokenizers"):
            raise
        err.print(f"foretoken: This needs {error.name}: pip install 'foretoken[transformers]'.", style="red")
        sys.exit(2)
    except BrokenPipeError:  # whoever read the answer has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
