"""``foretoken tune``: which drafter and settings to use, from logs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretoken.cli.console import out
from foretoken.cli.replay import (
    BackgroundName,
    DrafterNames,
    Files,
    Followups,
    HtmlFile,
    Jobs,
    JsonFile,
    Limit,
    MaxOutput,
    MaxPrompt,
    RayAddress,
    TokenizerName,
    background_folder,
    check_outputs,
    numbers_table,
    read_from,
    readable_logs,
    reading_options,
    report_skipped,
    run,
    skipped,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from rich.table import Table

    from foretoken.replay.score import Job, Score
    from foretoken.replay.tune import Advice

SHOWN = 8  # settings in the table; the JSON has all


def tune(
    files: Files,
    tokenizer: TokenizerName,
    costs: Annotated[
        str,
        typer.Option(
            help='The time of a forward over n rows: "flat", the same for any n, as on a GPU at batch 1; '
            '"linear:0.05", 5 % of one row for each further row; or a JSON file {"rows": [1, 2, 4, 8, 16], '
            '"milliseconds": [...]}, with straight lines between.'
        ),
    ],
    drafter: DrafterNames = None,
    budget: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1024, help="Drafted tokens to try; may be given again; 2, 4, 7, 10 and 15."),
    ] = None,
    limit: Limit = None,
    max_output: MaxOutput = 400,
    max_prompt: MaxPrompt = 6000,
    followups: Followups = False,
    background: BackgroundName = "general",
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling that the intervals come from.")] = 0,
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
    jobs: Jobs = None,
    ray: RayAddress = None,
) -> None:
    """Say which drafter and settings answer fastest on your logs, and how fast.

    Every drafter is replayed at every budget, with trees and, where that differs, chains. A step costs what a forward
    over its rows does, the drafted tokens and one; speed is the time of plain decoding over that of drafted decoding
    after the prefill, without the drafter's own time, which the table shows. Intervals hold 95 % of resampled answers.

    For vLLM's ngram method an emulation is replayed; settings for its suffix method are the closest counterparts,
    unmeasured.
    """
    from foretoken.replay.costs import Costs
    from foretoken.replay.plan import make_jobs
    from foretoken.replay.read import Reading
    from foretoken.replay.tune import affordable, vllm_jobs
    from foretoken.replay.tune import tune as tune_jobs
    from foretoken.reports import replay as report

    check_outputs(json_file, html_file, [*files, Path(costs), *read_from(tokenizer), *read_from(background)])
    prices = Costs.read(costs)
    budgets = affordable(budget, prices)
    reading = Reading(tokenizer, limit, max_prompt, max_output, followups)
    missing: list[dict[str, Any]] = []

    def run_and_report(some: Sequence[Job]) -> list[Score]:
        scores = run(some, jobs, ray)
        if some is plan:
            missing.extend(skipped(scores))
            report_skipped(scores)
        return scores

    with ExitStack() as copies:
        logs = readable_logs(files, ray, copies)
        plan = make_jobs(logs, drafter, budgets, True, reading, background_folder(background, tokenizer))
        firsts = {job.path: job for job in plan}.values()
        plan += [job for first in firsts for job in vllm_jobs(first, budgets)]
        plan.sort(key=lambda job: job.path)  # a process keeps the file that it read last
        advice, scores = tune_jobs(plan, run_and_report, prices, seed)
    out.print(advice_table(advice))
    for sentence in report.sentences(advice):
        out.print(sentence)
    if json_file is not None:
        options = {"costs": costs, "seed": seed, "background": Path(background).name} | reading_options(reading)
        write_json(json_file, options, advice.as_dict() | {"skipped": missing})
    if html_file is not None:
        write_text(html_file, report.tune_page(advice, scores, costs))


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
