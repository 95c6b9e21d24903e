"""``foretoken train``: train a speculator for a model."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from foretoken.cli.console import err
from foretoken.cli.corpus import report_bad
from foretoken.cli.options import Device, Dtype, HtmlFile, grouped, of_model, of_output
from foretoken.cli.output import check_outputs, write_text

if TYPE_CHECKING:
    from foretoken.training.kinds import Kind, Shape
    from foretoken.training.processes import Processes
    from foretoken.training.trainer import Moment, Training

app = typer.Typer(no_args_is_help=True)


@dataclass(frozen=True)
class TrainOptions:
    """Which model gets a speculator, from which data, and how."""

    base: Annotated[str, of_model(help='Model folder, name on the hub, or "tiny", the model in the package.')]
    data: Annotated[
        list[Path],
        typer.Option(
            help='Text file, folder of files, or .jsonl file with "text" in each row; plain, .gz or .xz (repeatable).',
            rich_help_panel="Data",
        ),
    ]
    output: Annotated[Path, of_output("--output", "-o", help="Folder of the speculator, and of the work on it.")]
    dtype: Dtype = "auto"
    device: Device = None
    work: Annotated[
        Path | None,
        of_output(help="Folder of generated texts and of states.", show_default="work in the output folder"),
    ] = None
    heads: Annotated[int, typer.Option(min=1, max=16, help="Tokens that are guessed.")] = 4
    steps: Annotated[
        int | None, typer.Option(min=0, help="Steps on text.", show_default="by the base's size, 15000 at most")
    ] = None
    own_steps: Annotated[
        int | None,
        typer.Option(min=0, help="Steps on the base's own texts.", show_default="by the base's size, 6000 at most"),
    ] = None
    batch: Annotated[
        int | None,
        typer.Option(min=64, help="Tokens of a step, a multiple of 64.", show_default="by the base's size"),
    ] = None
    accumulate: Annotated[
        int | None,
        typer.Option(
            min=1, help="Parts of a step that are computed one by one.", show_default="as many as 4 GB of logits need"
        ),
    ] = None
    rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 4e-3
    judge_every: Annotated[int, typer.Option(min=1, help="Steps between two judgements and checkpoints.")] = 100
    temperature: Annotated[float, typer.Option(min=0.01, help="Temperature of the base's own texts.")] = 1.0
    top_k: Annotated[int, typer.Option(min=0, help="Tokens that they are sampled from; 0 for all.")] = 10
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0


Inner = Annotated[
    int | None, typer.Option(min=1, help="Width of the speculator's layers.", show_default="the base's width")
]


@app.command("mlp-speculator")
@grouped
def mlp_speculator(training: TrainOptions, inner_dim: Inner = None, html_file: HtmlFile = None) -> None:
    """Train an MLP speculator: stages that each read the token guessed last (arXiv 2404.19124)."""
    run("mlp-speculator", training, inner_dim, html_file)


@app.command("blockwise")
@grouped
def blockwise(training: TrainOptions, inner_dim: Inner = None, html_file: HtmlFile = None) -> None:
    """Train blockwise heads, which share the base's output head (arXiv 1811.03115)."""
    run("blockwise", training, inner_dim, html_file)


@app.command("medusa")
@grouped
def medusa(training: TrainOptions, html_file: HtmlFile = None) -> None:
    """Train Medusa heads, each with an output head of its own (arXiv 2401.10774)."""
    run("medusa", training, None, html_file)


@app.command("rescorer")
@grouped
def rescorer(training: TrainOptions, inner_dim: Inner = None, html_file: HtmlFile = None) -> None:
    """Train a small language model that rescores what heads guess (arXiv 2404.09221), for the folder of those heads."""
    run("rescorer", training, inner_dim, html_file)


def run(kind: Kind, given: TrainOptions, inner: int | None, html_file: Path | None) -> None:
    """Train in all processes that torchrun started. The same command continues a training that was stopped."""
    from foretoken.files import check_writable
    from foretoken.training.kinds import Shape
    from foretoken.training.processes import joined

    check_outputs(None, html_file, given.data)
    check_writable(given.output / "config.json", folders=True)
    with joined(given.device) as processes:
        training = train(Shape(kind, given.heads, inner), given, processes)
        if processes.is_main:
            said = f"{given.output}: accepted length {training.best:.3f} on held-out texts of the base"
            err.print(said, style="dim")
            if html_file is not None:
                from foretoken.reports.training import training_page

                write_text(html_file, training_page(kind, given.base, training.history))


def train(shape: Shape, given: TrainOptions, processes: Processes) -> Training:
    """Train to the end, with a progress bar in the first process."""
    from foretoken.memory.fingerprint import fingerprint
    from foretoken.tokenizing import batch_encoder, load_tokenizer
    from foretoken.training.base import FrozenBase
    from foretoken.training.shards import Generating
    from foretoken.training.tokens import TokenStream
    from foretoken.training.trainer import Settings, Training, scaled_settings

    work = given.work or given.output / "work"
    with err.status(f"loading {given.base}") if processes.is_main else nullcontext():
        base = FrozenBase(given.base, given.dtype, given.device)
        tokenizer = load_tokenizer(given.base)
    end = base.model.config.get_text_config(decoder=True).eos_token_id
    end = end[0] if isinstance(end, list) else end
    stream = None
    for turn in range(2):  # the first process makes what the others read
        if processes.is_main == (turn == 0):
            stream = TokenStream(work, given.data, batch_encoder(tokenizer), fingerprint(tokenizer), end)
        processes.wait()
    assert stream is not None
    report_bad(stream.bad)
    steps, own_steps, batch = scaled_settings(base.num_parameters)
    settings = Settings(
        steps=steps if given.steps is None else given.steps,
        own_steps=own_steps if given.own_steps is None else given.own_steps,
        batch=given.batch or batch,
        accumulate=given.accumulate,
        rate=given.rate,
        judge_every=given.judge_every,
        seed=given.seed,
        generating=Generating(temperature=given.temperature, top_k=given.top_k),
    )
    with Bar(settings.judge_every) as bar:
        training = Training(shape, settings, base, stream, given.output, work, bar.show, bar.making, processes)
        training.run()
    return training


class Bar(Progress):
    """The steps of a training on standard error, and a line at every judgement."""

    def __init__(self, judge_every: int) -> None:
        columns: Any = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        super().__init__(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._every = judge_every
        self._task = self.add_task("training", total=None)
        self._making = self.add_task("", total=None, visible=False)

    def making(self, name: str, done: int, total: int) -> None:
        """Show how far a shard is."""
        self.update(self._making, description=name, completed=done, total=total, visible=done < total)

    def show(self, moment: Moment) -> None:
        """Show the losses and the accepted length."""
        losses = " ".join(f"{loss:.2f}" for loss in moment.losses)
        judged = "" if moment.accepted_length is None else f", accepted length {moment.accepted_length:.3f}"
        line = f"{moment.stage} {moment.step}/{moment.steps}: loss {losses}{judged}"
        self.update(self._task, description=line, completed=moment.step, total=moment.steps)
        if moment.step % self._every == 0 or moment.step == moment.steps:
            err.print(line, style="dim")
