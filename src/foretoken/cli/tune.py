"""``foretoken tune``: which drafter and settings to use, from logs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from foretoken.cli.console import out
from foretoken.cli.input import corpus_of, read_from
from foretoken.cli.logs import provenance_of, readable_logs, reading_of, report_skipped, run, skipped
from foretoken.cli.options import HtmlFile, JsonFile, LogOptions, ReplayOptions, grouped, of_draft
from foretoken.cli.output import check_outputs, numbers_table, write_numbers, write_text

if TYPE_CHECKING:
    from foretoken.replay.job import Job, JobResult
    from foretoken.replay.tune import Advice

SHOWN = 8  # settings in the table; the JSON has all


@grouped
def tune(
    logs: LogOptions,
    replaying: ReplayOptions,
    costs: Annotated[
        str,
        typer.Option(
            help='Time of a forward over n rows: "flat" (the same for every n, as on a GPU at batch 1), "linear:0.05" '
            '(each further row adds 5 % of one row), or a JSON file {"rows": [1, 2, 4, 8, 16], "milliseconds": [...]}.'
        ),
    ],
    budget: Annotated[
        list[int] | None,
        of_draft(min=1, max=1024, help="Tokens to draft in each step (repeatable).", show_default="2, 4, 7, 10 and 15"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling behind the intervals.")] = 0,
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
) -> None:
    """Say which drafter and settings answer fastest on your logs, and how fast.

    Every drafter is replayed at every budget, with trees and with chains where that differs. A step costs what one
    forward over its rows costs: the drafted tokens and one more. Speed is the time of plain decoding divided by the
    time of drafted decoding, both after the prefill. It leaves out the drafter's own time, which the table shows.
    Intervals hold 95 % of resampled answers.

    For vLLM's ngram method an emulation is replayed. Settings for its suffix method are the closest counterparts and
    were not measured.
    """
    from foretoken.replay.costs import parse_costs
    from foretoken.replay.plan import make_jobs
    from foretoken.replay.tune import affordable, vllm_jobs
    from foretoken.replay.tune import tune as tune_jobs
    from foretoken.reports import replay as report

    inputs = [*logs.files, Path(costs), *read_from(logs.tokenizer), *read_from(replaying.background)]
    check_outputs(json_file, html_file, inputs)
    prices = parse_costs(costs)
    budgets = affordable(budget, prices)
    missing: list[dict[str, Any]] = []

    def run_and_report(some: Sequence[Job]) -> list[JobResult]:
        results = run(some, replaying)
        if some is plan:
            missing.extend(skipped(results))
            report_skipped(results)
        return results

    with ExitStack() as copies:
        files = readable_logs(logs.files, replaying.ray, copies)
        corpus = corpus_of(replaying, logs.tokenizer)
        plan = make_jobs(files, replaying.drafter, budgets, True, reading_of(logs), corpus)
        firsts = {job.path: job for job in plan}.values()
        plan += [job for first in firsts for job in vllm_jobs(first, budgets)]
        plan.sort(key=lambda job: job.path)  # a process keeps the file that it read last
        advice, results = tune_jobs(plan, run_and_report, prices, seed)
    out.print(advice_table(advice))
    for sentence in report.sentences(advice):
        out.print(sentence)
    if json_file is not None:
        provenance = {"costs": costs, "seed": seed} | provenance_of(logs, replaying)
        write_numbers(json_file, provenance, advice.as_dict() | {"skipped": missing})
    if html_file is not None:
        write_text(html_file, report.tune_page(advice, results, costs))


def advice_table(advice: Advice) -> Table:
    """The fastest settings and the fastest of vLLM's."""
    headings = ["budget", "verifies", "speed", "95 %", "tokens\n/step", "rows\n/step", "draft\nµs"]
    table = numbers_table(["drafter"], headings, "expected speed over plain decoding")
    for outcome in (*advice.outcomes[:SHOWN], *(outcome for _, outcome in advice.ngram[:2])):
        table.add_row(
            outcome.setting.drafter,
            str(outcome.setting.budget),
            "trees" if outcome.setting.trees else "chains",
            f"{outcome.speed:.3f}x",
            f"{outcome.low:.2f} to {outcome.high:.2f}",
            f"{outcome.tokens_per_step:.3f}",
            f"{outcome.rows_per_step:.2f}",
            f"{outcome.draft_us:.1f}",
        )
    return table
