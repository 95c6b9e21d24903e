"""What the benchmarks share: how they end, and where their numbers go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from foretoken.cli.console import err, out, plain
from foretoken.cli.output import markdown_table, write_text
from foretoken.core.errors import ForetokenError
from foretoken.measure.differences import TextChanged
from foretoken.measure.provenance import of_model

SEED = 0
RESULTS = Path("build")
PROMPTS = Path(__file__).parent / "prompts"

Rounds = Annotated[int, typer.Option(min=1, help="How often each answer is given; medians count.")]
Data = Annotated[list[Path] | None, typer.Option(help="A folder of recorded answers, *.jsonl.gz (repeatable).")]
TokenizerFile = Annotated[str | None, typer.Option("--tokenizer", help="The tokenizer.json to read them with.")]
Out = Annotated[Path, typer.Option("--out", help="The file that the numbers are written to, as JSON.")]
OwnClock = Annotated[bool, typer.Option(help="Count the processor's time for this process, on a busy machine.")]


def take_own_clock(threads: int) -> None:
    """Let all times be the processor's for this process: of one thread, what a clock says if nothing else runs.

    Raises:
        ForetokenError: If there are several threads, whose times would be added up.
    """
    if threads > 1:
        raise ForetokenError("A clock of one's own adds up the threads: leave out --own-clock or --threads.")
    time.perf_counter = time.process_time


def run(main: Callable[..., None]) -> None:
    """Run a program: exit status 1 if a text changed, 2 after a bad input, with one sentence."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    @wraps(main)
    def guarded(**options: Any) -> None:
        try:
            main(**options)
        except ForetokenError as error:
            err.print(plain(str(error)), style="red")
            raise typer.Exit(1 if isinstance(error, TextChanged) else 2) from error

    typer.run(guarded)


def finish(path: Path, found: Mapping[str, Any], *tables: Sequence[Mapping[str, Any]], workload: str = "") -> None:
    """Print tables and write all numbers with where they come from."""
    for rows in tables:
        out.print(markdown_table([dict(row) for row in rows]))
    text = json.dumps({"provenance": of_model(workload, SEED)} | dict(found), ensure_ascii=False, indent=1)
    write_text(path, text + "\n")
