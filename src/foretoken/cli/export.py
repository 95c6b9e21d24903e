"""``foretoken export``: a model as a file for another engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foretoken.cli.console import err, plain
from foretoken.cli.input import silence_transformers
from foretoken.cli.options import Model

app = typer.Typer(no_args_is_help=True)


@app.command()
def gguf(
    output: Annotated[Path, typer.Option(help="File to write.", metavar="FILE")],
    weights: Annotated[
        str, typer.Option("--type", help="How the matrices are kept: f32, f16, bf16, q8_0 or q4_0.", metavar="TYPE")
    ],
    model: Model = "tiny",
) -> None:
    """Write a Llama model and its tokenizer as a GGUF file, which llama.cpp runs.

    Where llama-cpp-python is installed, the tokens of 100 texts are compared first; nothing is written if one differs.
    """
    from foretoken.export.gguf import export_gguf

    silence_transformers()
    num_texts = export_gguf(model, output, weights)
    same = f"; {num_texts} texts have the same tokens in llama.cpp" if num_texts else ""
    err.print(f"written to {plain(str(output))}{same}", style="dim")
