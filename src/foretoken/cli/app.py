"""All commands. The module of a command is imported when the command is called, so that help and version are quick."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from foretoken import __version__
from foretoken.cli.console import Warnings, out

# The module of this name has a function of the same name, or an ``app`` of several commands.
COMMANDS = {
    "generate": "Answer a prompt.",
    "serve": "Answer over HTTP as OpenAI does: completions and chats, streamed or whole.",
    "compare": "Compare drafted with plain decoding on your prompts.",
    "check": "Check in each dtype whether drafting changes a token.",
    "replay": "Score drafters on recorded answers, without a model.",
    "tune": "Say which drafter and settings answer fastest on your logs, and how fast.",
    "bench": "Measure what drafting gains on a model and a machine.",
    "corpus": "Build a background corpus: counts of the tokens that follow each other in text.",
    "train": "Train a speculator for a model: heads that guess its next tokens from its states.",
    "export": "Write a model as a file for another engine.",
    "history": "Show, delete, export and import the answers that are kept between runs.",
}
STYLE: dict[str, Any] = {
    "rich_markup_mode": "markdown",
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "add_completion": False,
}


class Commands(TyperGroup):
    """Lists commands by what ``COMMANDS`` says of them, and calls what their modules have."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(str(name)), rest


def load(name: str) -> Any:
    """The command of this name, as typer calls it."""
    module = import_module(f"foretoken.cli.{name}")
    loaded = typer.Typer(**STYLE)
    loaded.callback()(lambda: None)
    if hasattr(module, "app"):
        loaded.add_typer(module.app, name=name, help=COMMANDS[name])
    else:
        loaded.command(name)(getattr(module, name))
    group: Any = typer.main.get_command(loaded)
    return group.commands[name]


app = typer.Typer(cls=Commands, **STYLE)
for name, summary in COMMANDS.items():
    app.command(name, help=summary)(lambda: None)
logging.getLogger("foretoken").addHandler(Warnings())


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Make a language model that you already run answer faster, with the same text."""
    if version:
        out.print(f"foretoken {__version__}")
        raise typer.Exit
