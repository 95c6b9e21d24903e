"""``foretoken replay``: drafters on recorded answers, without a model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from foretoken.cli.console import err, out, plain
from foretoken.core.errors import ForetokenError
from foretoken.drafters import TEXT_DRAFTERS
from foretoken.files import check_apart, check_writable, writing

if TYPE_CHECKING:
    from foretoken.replay.read import Reading
    from foretoken.replay.score import Job, Score

SHOWN = 5  # skipped lines that are named for each file
PARTS = (  # files of a model's folder, and of a corpus
    "*config.json",
    "*token*.json",
    "*vocab*",
    "*.safetensors*",
    "*.bin*",
    "*.npz",
    "*.model",
    "*.txt",
    "*.jinja",
    "meta.json",
    "*.npy",
)

Files = Annotated[list[Path], typer.Argument(help="JSON lines with prompt and output, plain, .gz or .xz.")]
TokenizerName = Annotated[
    str, typer.Option("--tokenizer", help='A tokenizer.json, plain or .gz, a model folder, a hub name, or "tiny".')
]
DrafterNames = Annotated[
    list[str] | None,
    typer.Option("--drafter", help=f"Of {', '.join(TEXT_DRAFTERS)}; may be given again; all where none."),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="The first answers of each file of 16 tokens or more; else all.")
]
MaxOutput = Annotated[int, typer.Option(min=16, help="The first tokens of an answer, which are replayed.")]
MaxPrompt = Annotated[int, typer.Option(min=1, help="The last tokens of a prompt, which are read.")]
Followups = Annotated[bool, typer.Option("--followups", help="Later turns too, each after all text before it.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file.")]
HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write a page with plots to this file.")]
BackgroundName = Annotated[
    str,
    typer.Option("--background", help='What "ngram" drafts from: "general", the folder of a corpus, or "none".'),
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes at a time; all cores where not given.")]
RayAddress = Annotated[str | None, typer.Option("--ray", help="Run on the Ray cluster at this address.")]


def replay(
    files: Files,
    tokenizer: TokenizerName,
    drafter: DrafterNames = None,
    budget: Annotated[
        list[int] | None, typer.Option(min=0, max=1024, help="Tokens to draft for each step; may be given again; 10.")
    ] = None,
    chains: Annotated[bool, typer.Option("--chains", help="A target that verifies only chains, not trees.")] = False,
    limit: Limit = None,
    max_output: MaxOutput = 400,
    max_prompt: MaxPrompt = 6000,
    followups: Followups = False,
    background: BackgroundName = "general",
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
    jobs: Jobs = None,
    ray: RayAddress = None,
) -> None:
    """Score drafters on recorded answers, without a model.

    The record chooses the tokens, so acceptance is what it would have been while the answer was given. A drafter starts
    each file empty and keeps what it remembers from answer to answer. Tokens per step are counted after the prefill,
    the target's own token with them; draft and update times are means in microseconds.
    """
    from foretoken.replay.plan import make_jobs
    from foretoken.replay.read import Reading
    from foretoken.replay.score import with_answers
    from foretoken.reports import replay as report

    check_outputs(json_file, html_file, [*files, *read_from(tokenizer), *read_from(background)])
    reading = Reading(tokenizer, limit, max_prompt, max_output, followups)
    with ExitStack() as copies:
        logs = readable_logs(files, ray, copies)
        corpus = background_folder(background, tokenizer)
        scores = run(make_jobs(logs, drafter, budget or [10], not chains, reading, corpus), jobs, ray)
    report_skipped(scores)
    scores = with_answers(scores)
    out.print(figures_table(scores))
    calibration = report.calibration(scores)
    if calibration:
        out.print(calibration_table(scores))
    if json_file is not None:
        options = {"verifies": "chains" if chains else "trees", "background": Path(background).name}
        options |= reading_options(reading)
        rows = [score.row() for score in scores]
        found = {"rows": rows, "calibration": calibration, "tasks": report.tasks(scores), "skipped": skipped(scores)}
        write_json(json_file, options, found)
    if html_file is not None:
        write_text(html_file, report.replay_page(scores))


def readable_logs(files: Sequence[Path], ray: str | None, copies: ExitStack) -> dict[Path, Path]:
    """Where each file can be read by every job: a pipe is read once, into a private file that ``copies`` removes.

    Raises:
        ForetokenError: If one cannot be read, or is a pipe that a cluster is to read.
    """
    from foretoken.texts import readable_again

    logs = {path: copies.enter_context(readable_again(path)) for path in dict.fromkeys(files)}
    pipes = [path for path, copy in logs.items() if copy != path]
    if pipes and ray is not None:
        raise ForetokenError(f"{str(pipes[0])!r} is a pipe, which a cluster cannot read: give a file.")
    return logs


def run(jobs: Sequence[Job], processes: int | None, ray: str | None) -> list[Score]:
    """Run the jobs under a progress bar."""
    from foretoken.replay.run import run_jobs

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as progress:
        task = progress.add_task("replaying", total=len(jobs))

        def done(job: Job) -> None:
            progress.update(task, advance=1, description=f"{plain(job.label)}: {job.drafter}, budget {job.budget}")

        return run_jobs(jobs, processes, ray, done)


def background_folder(name: str, tokenizer: str) -> str | None:
    """The folder of a corpus for this tokenizer, built where it is the package's and was not used with it before.

    Raises:
        ForetokenError: If there is none, or it belongs to another tokenizer.
    """
    if name == "none":
        return None
    from foretoken.memory.corpus.general import general_folder
    from foretoken.memory.fingerprint import fingerprint
    from foretoken.ngrams.background import Background
    from foretoken.tokenizing import batch_encoder, load_tokenizer

    loaded = load_tokenizer(tokenizer)
    if name != "general":
        if not os.path.isdir(name):
            raise ForetokenError(f'There is no folder {name!r} of a corpus: give one, or "general", or "none".')
        Background.open(name, fingerprint(loaded))
        return name
    with err.status("cutting the background corpus with this tokenizer, once"):
        return str(general_folder(batch_encoder(loaded), fingerprint(loaded)))


def skipped(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """The lines that were passed over, the first of each file where they are many, once."""
    files = {score.job.path: score for score in scores}.values()
    return [{"file": score.job.label, "line": line, "reason": why} for score in files for line, why in score.skipped]


def report_skipped(scores: Sequence[Score]) -> None:
    """Name the lines that could not be used, on standard error."""
    for score in {score.job.path: score for score in scores}.values():
        label = plain(score.job.label)
        if score.skipped:
            named = "; ".join(f"line {line}: {reason}" for line, reason in score.skipped[:SHOWN])
            more = score.unusable - SHOWN
            rest = f"; and {more} more" if more > 0 else ""
            err.print(f"{label}: skipped {score.unusable}: {named}{rest}", style="yellow")
        if not score.items:
            err.print(f"{label}: no answer to replay", style="yellow")


def figures_table(scores: Sequence[Score]) -> Table:
    """A row for each score, and one for each drafter and budget on all files."""
    from foretoken.replay.score import figures

    table = numbers_table(
        ["file", "drafter"],
        ["budget", "tokens", "tokens\n/step", "drafted\n/step", "accept\nrate", "draft\nµs", "update\nµs/tok."],
        "on recorded answers",
    )

    def add(file: str, group: Sequence[Score]) -> None:
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

    for score in scores:
        add(plain(score.job.title), [score])
    groups = by_drafter(scores)
    if len(scores) > len(groups):
        table.add_section()
        for group in groups:
            add("all", group)
    return table


def numbers_table(names: Sequence[str], numbers: Sequence[str], title: str) -> Table:
    """A table whose names break before a number does."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for heading in names:
        table.add_column(heading, overflow="fold", no_wrap=heading == "drafter")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def by_drafter(scores: Sequence[Score]) -> list[list[Score]]:
    """The scores of each drafter and budget over all files."""
    groups: dict[tuple[str, int], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.job.drafter, score.job.budget), []).append(score)
    return list(groups.values())


def calibration_table(scores: Sequence[Score]) -> Table:
    """How the probabilities kept, over all files, for the drafters that give them."""
    from foretoken.replay.calibration import Reliability

    table = numbers_table(
        ["drafter"],
        ["budget", "guesses", "expected\nerror", "0 to 1/3", "1/3 to 2/3", "2/3 to 1"],
        "calibration: chance given → share that was right",
    )
    for group in by_drafter(scores):
        whole = Reliability.total(score.reliability for score in group)
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


def reading_options(reading: Reading) -> dict[str, Any]:
    """What the numbers depend on, for their provenance."""
    return {
        "tokenizer": Path(reading.tokenizer).name,
        "limit": reading.limit,
        "max_prompt": reading.max_prompt,
        "max_output": reading.max_output,
        "followups": reading.followups,
    }


def read_from(name: str) -> list[Path]:
    """The files that a command reads when it is given this tokenizer, model or corpus; none where it is no file's name.

    Of a folder those that make up a model or a corpus, whatever else may lie there.
    """
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return [file for pattern in PARTS for file in path.glob(pattern)]
    return [path] if os.path.isfile(path) else []


def check_outputs(json_file: Path | None, html_file: Path | None, inputs: Sequence[Path] = ()) -> None:
    """Refuse before the work what would fail after it, or would do harm.

    Raises:
        ForetokenError: If a file cannot be written, is another output or one of ``inputs``, or a page cannot be made.
    """
    if html_file is not None:
        from foretoken.reports.page import require_plotly

        require_plotly()
    outputs = [path for path in (json_file, html_file) if path is not None]
    check_apart(outputs, inputs)
    for path in outputs:
        check_writable(path, folders=True)


def write_json(path: Path, options: dict[str, Any], found: dict[str, Any]) -> None:
    """Write numbers with where they come from."""
    from foretoken.provenance import code_and_machine

    write_text(
        path, json.dumps({"provenance": code_and_machine() | options} | found, ensure_ascii=False, indent=1) + "\n"
    )


def write_text(path: Path, text: str) -> None:
    """Write a file and say so."""
    write_quietly(path, text)
    err.print(f"written to {plain(str(path))}", style="dim")


def write_quietly(path: Path, text: str) -> None:
    """Write a file, with the folders that it needs; half of a character, in a file's name, as JSON writes it."""
    with writing(path, folders=True) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
