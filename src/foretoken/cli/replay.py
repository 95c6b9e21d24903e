"""``foretoken replay``: drafters on recorded answers, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

from rich.table import Table

from foretoken.cli.console import out, plain
from foretoken.cli.input import corpus_of, read_from
from foretoken.cli.logs import provenance_of, readable_logs, reading_of, report_skipped, run, skipped
from foretoken.cli.options import HtmlFile, JsonFile, LogOptions, ReplayOptions, grouped, of_draft
from foretoken.cli.output import check_outputs, numbers_table, write_numbers, write_text

if TYPE_CHECKING:
    from foretoken.replay.job import JobResult


@grouped
def replay(
    logs: LogOptions,
    replaying: ReplayOptions,
    budget: Annotated[
        list[int] | None,
        of_draft(min=0, max=1024, help="Tokens to draft in each step (repeatable).", show_default="10"),
    ] = None,
    chains: Annotated[
        bool, of_draft("--chains", help="Draft chains only, for a model that verifies no trees.")
    ] = False,
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
) -> None:
    """Score drafters on recorded answers, without a model.

    The recorded tokens stand in for the model's, so acceptance is what it would have been while the answer was given. A
    drafter starts each file empty and remembers its answers one after the other. Tokens per step are counted after the
    prefill and include the model's own token. Draft and update times are means in microseconds.
    """
    from foretoken.replay.job import with_answers
    from foretoken.replay.plan import make_jobs
    from foretoken.reports import replay as report

    check_outputs(json_file, html_file, [*logs.files, *read_from(logs.tokenizer), *read_from(replaying.background)])
    with ExitStack() as copies:
        files = readable_logs(logs.files, replaying.ray, copies)
        corpus = corpus_of(replaying, logs.tokenizer)
        jobs = make_jobs(files, replaying.drafter, budget or [10], not chains, reading_of(logs), corpus)
        results = run(jobs, replaying)
    report_skipped(results)
    results = with_answers(results)
    out.print(figures_table(results))
    calibration = report.calibration(results)
    if calibration:
        out.print(calibration_table(results))
    if json_file is not None:
        provenance = {"verifies": "chains" if chains else "trees"} | provenance_of(logs, replaying)
        rows = [result.row() for result in results]
        found = {"rows": rows, "calibration": calibration, "tasks": report.tasks(results), "skipped": skipped(results)}
        write_numbers(json_file, provenance, found)
    if html_file is not None:
        write_text(html_file, report.replay_page(results))


def figures_table(results: Sequence[JobResult]) -> Table:
    """A row for each result, and one for each drafter and budget on all files."""
    from foretoken.replay.job import figures

    table = numbers_table(
        ["file", "drafter"],
        ["budget", "tokens", "tokens\n/step", "drafted\n/step", "accept\nrate", "draft\nµs", "update\nµs/tok."],
        "on recorded answers",
    )

    def add(file: str, group: Sequence[JobResult]) -> None:
        numbers = figures(group)
        table.add_row(
            file,
            group[0].job.drafter,
            str(group[0].job.budget),
            str(numbers["tokens"]),
            f"{numbers['tokens_per_step']:.3f}",
            f"{numbers['drafted_per_step']:.2f}",
            f"{numbers['accept_rate']:.1%}",
            f"{numbers['draft_us']:.1f}",
            f"{numbers['update_us_per_token']:.1f}",
        )

    for result in results:
        add(plain(result.job.title), [result])
    groups = by_drafter(results)
    if len(results) > len(groups):
        table.add_section()
        for group in groups:
            add("all", group)
    return table


def by_drafter(results: Sequence[JobResult]) -> list[list[JobResult]]:
    """The results of each drafter and budget over all files."""
    groups: dict[tuple[str, int], list[JobResult]] = {}
    for result in results:
        groups.setdefault((result.job.drafter, result.job.budget), []).append(result)
    return list(groups.values())


def calibration_table(results: Sequence[JobResult]) -> Table:
    """How the probabilities kept, over all files, for the drafters that give them."""
    from foretoken.replay.calibration import Reliability

    table = numbers_table(
        ["drafter"],
        ["budget", "guesses", "expected\nerror", "0 to 1/3", "1/3 to 2/3", "2/3 to 1"],
        "calibration: chance given → share that was right",
    )
    for group in by_drafter(results):
        whole = Reliability.total(result.reliability for result in group)
        if not sum(whole.nodes):
            continue
        cells = []
        for start in (0, 5, 10):  # thirds of the 15 bins
            nodes = sum(whole.nodes[start : start + 5])
            chance, right = sum(whole.chances[start : start + 5]), sum(whole.right[start : start + 5])
            cells.append(f"{chance / nodes:.2f} → {right / nodes:.2f}" if nodes else "")
        job = group[0].job
        table.add_row(job.drafter, str(job.budget), str(sum(whole.nodes)), f"{whole.error:.3f}", *cells)
    return table
