"""``python -m foretoken.bench``: run the benchmarks, print their tables, write their numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from transformers.utils import logging

from foretoken.bench import overhead, replayed, speed, traces
from foretoken.bench.provenance import provenance

PARTS = ("speed", "overhead", "replayed", "traces")
console = Console(soft_wrap=True, highlight=False, markup=False)


def run(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Which of {', '.join(PARTS)}; all where none.")] = None,
    out: Annotated[Path, typer.Option(help="Where the numbers are written.")] = Path("build/bench.json"),
    rounds: Annotated[int, typer.Option(min=1, help="How often each answer is given; medians count.")] = 3,
    dtype: Annotated[
        list[str] | None, typer.Option(help="May be given again; float32 and bfloat16 where none.")
    ] = None,
    device: Annotated[str | None, typer.Option(help='"cpu", "cuda"; a GPU if there is one.')] = None,
    data: Annotated[Path | None, typer.Option(help="A folder of recorded answers, *.jsonl.gz.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The tokenizer.json to read them with, plain or .gz.")] = None,
    limit: Annotated[int, typer.Option(help="Answers of each file.")] = 24,
) -> None:
    """Measure speed, overhead, replayed gain and, where there is data, acceptance on recorded answers."""
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
        elif part == "overhead":
            results[part] = overhead.measure()
            console.print(markdown(results[part]))
        elif part == "replayed":
            results[part] = replayed.measure(prompts_per_kind=2, rounds=rounds)
            console.print(markdown(results[part]["rows"]))
            console.print(markdown([{key: results[part][key] for key in ("gain", "acceptance_length", "share")}]))
        elif data is not None and tokenizer is not None:
            results[part] = traces.measure(data, tokenizer, limit)
            console.print(markdown(results[part]))
        # Written part by part, so that a run that is stopped keeps what it measured.
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"written to {out}")


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
