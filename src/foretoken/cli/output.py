"""What commands write: answers, tables, and files that are refused before the work if they cannot be written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.table import Table

from foretoken.cli.console import err, out, plain, print_json, write
from foretoken.files import check_apart, check_writable, writing

if TYPE_CHECKING:
    from foretoken.api.answer import Stream
    from foretoken.core.stats import DecodeStats

PROMPT_LINES = 6  # of a prompt's end that are shown before its answer


def write_answer(stream: Stream, show_drafts: bool, as_json: bool) -> None:
    """Print an answer as it comes and a summary, or all of it as JSON."""
    interrupted = False
    try:
        for chunk in stream:
            if not as_json:
                write(chunk.text, accepted=show_drafts and chunk.accepted)
    except KeyboardInterrupt:
        interrupted = True
    result = stream.result
    if as_json:
        answer = {"text": result.text, "tokens": result.tokens, "finish_reason": result.finish_reason}
        print_json(answer | {"exact": result.exact, "stats": result.stats.as_dict()})
    else:
        write("\n")
        err.print(f"{result.finish_reason or 'interrupted'}: {summary(result.stats)}", style="dim")
    if interrupted:
        raise typer.Exit(130)


def write_drafts(name: str, prompt: str, stream: Stream) -> None:
    """Print the end of a prompt and its answer, accepted draft tokens in colour."""
    out.rule(f"{name}: the end of the prompt, then the answer with accepted draft tokens in green")
    write("".join(prompt.splitlines(keepends=True)[-PROMPT_LINES:]))
    for chunk in stream:
        write(chunk.text, accepted=chunk.accepted)
    write("\n")


def summary(stats: DecodeStats) -> str:
    """One line on what an answer cost."""
    speed = stats.tokens / stats.seconds if stats.seconds else 0.0
    return (
        f"{stats.tokens} tokens in {stats.steps} steps after the prefill ({stats.acceptance_length:.2f} a step), "
        f"{stats.accepted} of {stats.drafted} drafted tokens accepted, {stats.seconds:.2f} s, {speed:.0f} tokens/s"
    )


def numbers_table(names: Sequence[str], numbers: Sequence[str], title: str) -> Table:
    """A table whose names break before a number does."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for heading in names:
        table.add_column(heading, overflow="fold", no_wrap=heading == "drafter")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def markdown_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A Markdown table of rows that share their keys, or most of them."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*keys, box=box.MARKDOWN)
    for column in table.columns:
        column.no_wrap = True  # Markdown knows no row of two lines
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in keys))
    return table


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def check_outputs(json_file: Path | None, html_file: Path | None, inputs: Sequence[Path] = ()) -> None:
    """Refuse before the work what would fail after it, or would do harm.

    Raises:
        ForetokenError: If a file cannot be written, is another output or one of ``inputs``, or a page cannot be made.
    """
    if html_file is not None:
        from foretoken.reports.page import require_report

        require_report()
    outputs = [path for path in (json_file, html_file) if path is not None]
    check_apart(outputs, inputs)
    for path in outputs:
        check_writable(path, folders=True)


def write_numbers(path: Path, options: dict[str, Any], found: dict[str, Any]) -> None:
    """Write numbers with where they come from, and say so."""
    from foretoken.provenance import code_and_machine

    found = {"provenance": code_and_machine() | options} | found
    write_text(path, json.dumps(found, ensure_ascii=False, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file and say so."""
    write_quietly(path, text)
    err.print(f"written to {plain(str(path))}", style="dim")


def write_quietly(path: Path, text: str) -> None:
    """Write a file, with the folders that it needs; half of a character, in a file's name, as JSON writes it."""
    with writing(path, folders=True) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
