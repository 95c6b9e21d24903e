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
from foretoken.cli.options import AsJson
from foretoken.core.errors import RequestError

SHOWN = 10  # numbers of a file's bad lines

app = typer.Typer(no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="CORPUS", help="Folder of a corpus.")]


@app.command()
def build(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Text files, each one document, or .jsonl files with output or text in each row; plain, .gz or .xz."
        ),
    ],
    model: Annotated[
        str, typer.Option(help='Whose tokens to count: model folder, tokenizer.json, name on the hub, or "tiny".')
    ],
    store: Annotated[Path, typer.Option("--output", "-o", metavar="CORPUS", help="Folder to write the corpus to.")],
    min_count: Annotated[
        int, typer.Option(min=1, max=(1 << 32) - 1, help="Drop what occurs less often. Use 2 for a large corpus.")
    ] = 1,
    memory: Annotated[
        float, typer.Option(min=0.001, max=1 << 20, help="GiB to use for counting. More is faster for a large corpus.")
    ] = 1.0,
    force: Annotated[bool, typer.Option("--force", help="Replace a corpus, or drop another unfinished build.")] = False,
) -> None:
    """Build a corpus from text. The same command continues a build that was interrupted."""
    from foretoken.memory.corpus import File, build_from
    from foretoken.memory.fingerprint import fingerprint
    from foretoken.ngrams.background import MAX_VOCABULARY, Background
    from foretoken.tokenizing import batch_encoder, load_tokenizer

    sources = [File(path) for path in files]
    with err.status(f"loading {model}"):
        tokenizer = load_tokenizer(model)
    if tokenizer.get_vocab_size() > MAX_VOCABULARY:
        raise RequestError(
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
def info(store: Folder, as_json: AsJson = False) -> None:
    """Say what a corpus holds."""
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
