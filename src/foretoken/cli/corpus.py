"""``foretoken corpus``: build a background corpus from text, and say what is in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from foretoken.cli.console import err, out, print_json
from foretoken.core.errors import ForetokenError

SHOWN = 10  # numbers of a file's bad lines

app = typer.Typer(help="Build a background corpus, the counts of what follows what in much text.", no_args_is_help=True)

Files = Annotated[
    list[Path],
    typer.Argument(help="Text, each file a document, or .jsonl with output or text in each row; plain, .gz or .xz."),
]
Model = Annotated[str, typer.Option(help='Whose tokens: a model folder, a tokenizer.json, a hub name, or "tiny".')]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="STORE", help="The folder to build.")]
MinCount = Annotated[
    int, typer.Option(min=1, max=(1 << 32) - 1, help="Drop what was seen less often; give 2 for a big corpus.")
]
Memory = Annotated[
    float, typer.Option(min=0.001, max=1 << 20, help="GiB that counting may take; more is faster for a big corpus.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a store, drop another unfinished build.")]
Store = Annotated[Path, typer.Argument(metavar="STORE", help="A folder that was built.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


@app.command()
def build(
    files: Files,
    model: Model,
    store: Output,
    min_count: MinCount = 1,
    memory: Memory = 1.0,
    force: Force = False,
) -> None:
    """Build a store from text; the same command again goes on with a build that was stopped."""
    from foretoken.memory.corpus import File, build_from
    from foretoken.memory.fingerprint import fingerprint
    from foretoken.ngrams.background import MAX_VOCABULARY, Background
    from foretoken.tokenizing import batch_encoder, load_tokenizer

    sources = [File(path) for path in files]
    with err.status(f"loading {model}"):
        tokenizer = load_tokenizer(model)
    if tokenizer.get_vocab_size() > MAX_VOCABULARY:
        raise ForetokenError(
            f"The tokenizer of {model!r} has {tokenizer.get_vocab_size()} tokens, and a background corpus has room for "
            f"{MAX_VOCABULARY}: use another model."
        )
    with Bar() as bar:
        state = build_from(
            sources,
            batch_encoder(tokenizer),
            fingerprint(tokenizer),
            store,
            min_count=min_count,
            memory=int(memory * (1 << 30)),
            force=force,
            progress=bar.show,
        )
    report_bad(state.bad)
    size = Background.open(store).nbytes
    err.print(
        f"{store}: {state.documents} documents, {state.tokens} tokens, {state.rows} rows, {size} bytes, "
        f"{size / state.tokens:.2f} bytes per token",
        style="dim",
    )


@app.command()
def info(store: Store, as_json: AsJson = False) -> None:
    """Say what a store holds."""
    from foretoken.ngrams.background import Background

    background = Background.open(store)
    size = background.nbytes
    facts = background.meta | {"bytes": size, "bytes_per_token": round(size / background.meta["tokens"], 3)}
    if as_json:
        print_json(facts)
        return
    table = Table(show_header=False, title=str(store))
    for _ in range(2):
        table.add_column(no_wrap=True)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), str(value))
    out.print(table)


class Bar(Progress):
    """The two stages of a build, on standard error."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        super().__init__(*columns, console=err, transient=True, disable=not err.is_terminal)
        self.stage = self.add_task("reading")

    def show(self, stage: str, done: int, total: int) -> None:
        """What ``build_from`` calls."""
        name = f"reading {decimal(done)} of {decimal(total)}" if stage == "read" else "counting"
        self.update(self.stage, description=name, completed=done, total=total)


def report_bad(bad: Mapping[str, Sequence[int]]) -> None:
    """Say which lines were passed over."""
    for name, lines in bad.items():
        numbers = ", ".join(map(str, lines[:SHOWN])) + (", .." if len(lines) > SHOWN else "")
        err.print(
            f"{name}: {len(lines)} lines passed over, since they are not JSON with output or text: {numbers}",
            style="red",
        )
