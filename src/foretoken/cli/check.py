"""``foretoken check``: does drafting change a token of this model, in each dtype?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from foretoken.cli.console import err, out, plain, print_json
from foretoken.cli.input import load_model
from foretoken.cli.options import AsJson, Device, DraftOptions, ExactOption, ModelOptions, of_model
from foretoken.engines import ENGINES, engine_module

if TYPE_CHECKING:
    from foretoken.measure.check import Report

DTYPES = ("float32", "bfloat16", "float16")
EXACTNESS = "a forward is filled up to the next of these numbers of rows"


def check(
    model: Annotated[str, typer.Argument(help='Model folder, name on the hub, GGUF file, or "tiny".')] = "tiny",
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Text to continue (repeatable).", metavar="TEXT", show_default="a built-in text"),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        of_model(help="Dtype to check (repeatable); a GGUF file has its own.", show_default=", ".join(DTYPES)),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate for each answer.")] = 64,
    as_json: AsJson = False,
    device: Device = None,
    exact: ExactOption = "auto",
) -> None:
    """Check in each dtype whether drafting changes a token.

    A second table says what the self-test of exactness finds: how many rows a forward is filled up to, how many rows
    were equal in every bit, and what that costs. The exit status is 1 if a token differs in float32 or where exactness
    is in force, or if logits are not numbers.
    """
    from foretoken.measure.check import check as check_model

    reports = []
    for name in dtype or (DTYPES if engine_module(model) == ENGINES["*"] else ["auto"]):
        lm = load_model(ModelOptions(model, name, device, exact), DraftOptions(drafter="none", background="none"))
        with err.status(f"{name}: plain and drafted"):
            reports.append(check_model(lm, max_new_tokens, prompt or None))
    if as_json:
        print_json([report.as_dict() for report in reports])
    else:
        out.print(check_table(reports))
        out.print(exactness_table(reports))
        for report in reports:
            if report.not_exact is not None:
                err.print(plain(f"{report.dtype}: {report.not_exact}"), style="dim")
    for report in reports:
        if report.not_numbers:
            told = f"In {report.dtype} the logits are not numbers in {report.not_numbers} of {report.answers} answers"
            err.print(f"foretoken: {told}: the weights are damaged, or too large for this dtype.", style="red")
    if not all(report.holds for report in reports):
        raise typer.Exit(1)


def exactness_table(reports: Sequence[Report]) -> Table:
    """What the self-test of each dtype found, a row each."""
    table = Table("dtype", "in force", title="exactness, as the self-test finds it", caption=EXACTNESS)
    for heading in ("rows of a plain step", "of a drafted one", "bit-equal rows", "cost of a plain step"):
        table.add_column(heading, justify="right")
    for report in reports:
        found, in_force = report.self_test, "yes" if report.exact else "no"
        if found is None or not found.widths:
            table.add_row(report.dtype, in_force, *["none"] * 4)
            continue
        first, *others = found.widths
        table.add_row(
            report.dtype,
            in_force,
            str(first),
            ", ".join(map(str, others)),
            f"{found.equal} of {found.rows}",
            f"{found.cost:+.0%}",
        )
    return table


def check_table(reports: Sequence[Report]) -> Table:
    """One row a dtype."""
    contexts = dict.fromkeys(f"{start} to {end}" for report in reports for start, end in report.contexts)
    table = Table("dtype", title="drafted against plain, greedy", caption=f"after {', '.join(contexts) or 'no'} tokens")
    for heading in ("answers", "tokens", "draft\ntrees", "identical", "largest\nlogit change", "first difference"):
        table.add_column(heading, justify="left" if heading in ("draft\ntrees", "first difference") else "right")
    for report in reports:
        first = min(report.differences, key=lambda difference: difference.position, default=None)
        change = "unknown" if report.noise is None else f"{report.noise:.2g}"
        tie = "" if first is None or first.gap is None else f", best logits {first.gap:.2g} apart"
        table.add_row(
            report.dtype,
            str(report.answers),
            str(report.tokens),
            "yes" if report.trees else "chains only",
            f"{report.answers - len(report.differences) - report.not_numbers} of {report.answers}",
            change,
            f"token {first.position + 1}{tie}" if first else "none",
        )
    return table
