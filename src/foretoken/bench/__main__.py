"""``python -m foretoken.bench``: run the benchmarks, print their tables, write their numbers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from transformers.utils import logging

from foretoken.bench import latency, never_slower, overhead, replayed, speed, traces
from foretoken.bench.provenance import provenance
from foretoken.corpus.general import general_background
from foretoken.drafters.background import Background
from foretoken.fingerprint import fingerprint
from foretoken.replay.read import Reading, Trace, read_log
from foretoken.tokenizing import batch_encoder, load_tokenizer

PARTS = ("speed", "never-slower", "overhead", "latency", "replayed", "traces")
NUM_TEXTS, MIN_TEXT = 6, 1000  # of a file for never-slower, and characters that a text has at least
console = Console(soft_wrap=True, highlight=False, markup=False)


def run(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Which of {', '.join(PARTS)}; all where none.")] = None,
    out: Annotated[Path, typer.Option(help="Where the numbers are written.")] = Path("build/bench.json"),
    rounds: Annotated[int, typer.Option(min=1, help="How often each answer is given; medians count.")] = 3,
    dtype: Annotated[
        list[str] | None, typer.Option(help="May be given again; float32 and bfloat16 where none.")
    ] = None,
    device: Annotated[str | None, typer.Option(help='"cpu", "cuda"; a GPU if there is one.')] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="A folder of recorded answers, *.jsonl.gz; may be given again.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The tokenizer.json to read them with, plain or .gz.")] = None,
    limit: Annotated[int, typer.Option(help="Answers of each file, for the part traces.")] = 24,
    per_set: Annotated[int, typer.Option(help="Answers of each file, for the part replayed.")] = 2,
    texts: Annotated[
        list[Path] | None, typer.Option(help="A file of recorded answers for never-slower, such as translations.")
    ] = None,
) -> None:
    """Measure speed, costs, replayed gain and, where there is data, acceptance on recorded answers."""
    unknown = set(parts or []) - set(PARTS)
    if unknown:
        raise typer.BadParameter(f"there is no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    results: dict[str, Any] = {"provenance": provenance(speed.workload(), speed.SEED)}
    for part in parts or PARTS:
        if part == "speed":
            results[part] = speed.measure("tiny", dtype or ["float32", "bfloat16"], rounds, device)
            console.print(markdown(results[part]["summary"]))
        elif part == "never-slower":
            rows = never_slower.measure(dtype or ["float32", "bfloat16"], rounds, read_texts(texts or []))
            results[part] = {"rows": rows, "summary": never_slower.summarise(rows)}
            console.print(markdown(results[part]["summary"]))
        elif part == "overhead":
            results[part] = overhead.measure()
            console.print(markdown(results[part]))
        elif part == "latency":
            results[part] = latency.measure(background_for("tiny"))
            console.print(markdown(results[part]))
        elif part == "replayed":
            sets = read_sets(data, tokenizer, per_set) if data and tokenizer else {}
            results[part] = replayed.measure(rounds, sets, background_for(tokenizer) if sets and tokenizer else None)
            console.print(markdown(results[part]["rows"]))
            console.print(markdown([{key: value for key, value in results[part].items() if key != "rows"}]))
        elif data and tokenizer is not None:
            results[part] = traces.measure(data, tokenizer, limit)
            console.print(markdown(results[part]["summary"]))
            console.print(markdown(results[part]["rows"]))
        # Written part by part, so that a run that is stopped keeps what it measured.
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"written to {out}")


def background_for(tokenizer: str) -> Background:
    """The corpus that comes with the package, in a tokenizer's tokens."""
    loaded = load_tokenizer(tokenizer)
    return general_background(batch_encoder(loaded), fingerprint(loaded))


def read_sets(folders: Sequence[Path], tokenizer: str, limit: int) -> dict[str, list[Trace]]:
    """The first answers of every file."""
    files = sorted(path for folder in folders for path in folder.glob("*.jsonl.gz"))
    return {path.name: read_log(str(path), Reading(tokenizer, limit)).traces for path in files}


def read_texts(files: Sequence[Path]) -> dict[str, list[str]]:
    """The first long answers of every file, as text."""
    return {path.name: list(islice(long_outputs(path), NUM_TEXTS)) for path in files}


def long_outputs(path: Path) -> Iterator[str]:
    """The recorded answers that have text for a measurement."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from (output for line in lines if len(output := json.loads(line)["output"]) >= MIN_TEXT)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table of rows that share their keys, or most of them."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in keys) + " |" for row in rows]
    return "\n" + "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    typer.run(run)
