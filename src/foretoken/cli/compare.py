"""``foretoken compare``: the same prompts with and without drafting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from foretoken.cli.console import err, out, print_json
from foretoken.cli.input import as_prompt, load_model, read_options, read_prompts
from foretoken.cli.options import (
    AnswerOptions,
    AsJson,
    DraftOptions,
    ModelOptions,
    PromptOptions,
    ShowDrafts,
    grouped,
)
from foretoken.cli.output import write_drafts

if TYPE_CHECKING:
    from foretoken.measure.compare import Comparison


@grouped
def compare(
    asked: PromptOptions,
    answer: AnswerOptions,
    drafting: DraftOptions,
    where: ModelOptions,
    rounds: Annotated[int, typer.Option(min=1, help="Times to answer each prompt both ways, in turns.")] = 3,
    show_drafts: ShowDrafts = False,
    as_json: AsJson = False,
) -> None:
    """Compare drafted with plain decoding on your prompts.

    Each prompt is answered both ways in turns. The exit status is 1 if a token differs.
    """
    from foretoken.measure.compare import compare as compare_prompt

    prompts = read_prompts(asked)
    options = read_options(answer, drafting)
    lm = load_model(where, drafting)
    lm.memories.wait()
    rows = []
    for name, text in prompts:
        prompt = as_prompt(text, asked.chat)
        with err.status(f"{name}: plain and drafted, in turns"):
            rows.append(compare_prompt(lm, prompt, lm.drafter, rounds, options))
        if show_drafts and not as_json:
            write_drafts(name, text, lm.stream(prompt, **options))
    names = [name for name, _ in prompts]
    if as_json:
        print_json([{"prompt": name} | row.as_dict() for name, row in zip(names, rows, strict=True)])
    else:
        out.print(comparison_table(names, rows))
    if not all(row.identical for row in rows):
        raise typer.Exit(1)


def comparison_table(names: Sequence[str], rows: Sequence[Comparison]) -> Table:
    """One row a prompt."""
    table = Table("prompt", title="plain → drafted, the median of turns")
    for heading in ("tokens", "steps", "seconds", "speed", "tokens\n/step"):
        table.add_column(heading, justify="right")
    table.add_column("identical")
    for name, row in zip(names, rows, strict=True):
        table.add_row(
            name,
            str(len(row.plain.tokens)),
            f"{row.plain.stats.steps} → {row.drafted.stats.steps}",
            f"{row.plain.stats.seconds:.2f} → {row.drafted.stats.seconds:.2f}",
            f"{row.speed:.2f}x",
            f"{row.drafted.stats.acceptance_length:.2f}",
            "yes" if row.identical else "no",
        )
    return table
