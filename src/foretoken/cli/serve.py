"""``foretoken serve``: answer over HTTP as OpenAI does."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from foretoken.cli.console import err
from foretoken.cli.input import chosen_history, load_model
from foretoken.cli.options import (
    ABOUT_DRAFTERS,
    Background,
    Device,
    DraftOptions,
    Dtype,
    ExactOption,
    ModelOptions,
    Speculator,
    of_draft,
)
from foretoken.core.errors import RequestError
from foretoken.core.numbers import real
from foretoken.drafters import DEFAULT_DRAFTER
from foretoken.engines.base import FOUND
from foretoken.memory.prefixes import Prefixes

of_server = partial(typer.Option, rich_help_panel="Server")


def serve(
    model: Annotated[str, typer.Argument(help='Model folder, name on the hub, or "tiny".')] = "tiny",
    host: Annotated[str, of_server(help="Address to listen on; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, of_server(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    api_keys: Annotated[
        Path | None,
        of_server(help="File with a name and a key on each line. Without it, everybody may ask.", metavar="FILE"),
    ] = None,
    max_active: Annotated[int, of_server(min=1, max=256, help="Answers that take turns, each with its own cache.")] = 4,
    max_queue: Annotated[int, of_server(min=0, max=65536, help="Requests that may wait; further ones get 429.")] = 64,
    cache_mib: Annotated[
        int, of_server(min=0, help="MiB of what was computed of prompts, so that a next turn is read sooner.")
    ] = 512,
    timeout: Annotated[float, of_server(help="Seconds that a request may take, its wait with it.")] = 600.0,
    drafter: Annotated[
        str | None,
        of_draft(
            help=f"{ABOUT_DRAFTERS}\n- none: Plain decoding.\n\nA request may name another, without options.",
            metavar="NAME:OPTION=VALUE,...",
            show_default=DEFAULT_DRAFTER,
        ),
    ] = None,
    background: Background = "general",
    speculator: Speculator = FOUND,
    history: Annotated[
        Path | None,
        of_draft(help="File that keeps answers between runs, apart for each API key.", show_default="none"),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = None,
    exact: ExactOption = "auto",
) -> None:
    """Answer over HTTP as OpenAI does: completions and chats, streamed or whole.

    It ends at Ctrl-C or SIGTERM, once what was begun is answered. No prompt and no answer is logged.
    """
    if real("--timeout", timeout) <= 0:
        raise RequestError(f"--timeout is {timeout}: give a number of seconds above 0.")
    from foretoken.server.app import Server
    from foretoken.server.keys import ApiKeys, read_keys
    from foretoken.server.run import listen, run, url_of
    from foretoken.server.scheduler import Scheduler

    keys = ApiKeys({} if api_keys is None else read_keys(api_keys))
    with listen(host, port) as listening:
        drafting = DraftOptions(drafter=drafter, background=background, speculator=speculator)
        # The environment variable is for the one user of the command line, not for those of a server.
        kept = False if history is None else chosen_history(history)
        lm = load_model(ModelOptions(model, dtype, device, exact), drafting, kept)
        lm.prefixes = Prefixes(cache_mib << 20)
        name = Path(model).resolve().name if os.path.isdir(model) else model
        is_open = not listening.getsockname()[0].startswith(("127.", "::1"))
        hosts = None if keys.are_needed or is_open else {"localhost", "127.0.0.1", "::1", host}
        with err.status("measuring what forwards cost, once"):
            app = Server(lm, name, keys, Scheduler(max_active, max_queue, timeout), hosts).app()
        if is_open and not keys.are_needed:
            err.print("There are no API keys: everybody who reaches this address may ask.", style="yellow")
        run(app, listening, lambda: err.print(f"{name} answers at {url_of(listening)}/v1"))
    err.print("stopped", style="dim")
