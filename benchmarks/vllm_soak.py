"""Thousands of requests to vLLM with our drafter: memory, what is left of them, and every text compared.

Prompts are stretches of the bundled ones, each another one, answered by an engine without drafts too. Answers are
remembered, in one namespace. Run it with the python that ``scripts/setup-vllm`` prints.

    python -m benchmarks.vllm_soak --requests 10000

Prints after each tenth of the requests the memory of the process, of the drafter's states and of what is remembered.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from foretoken.cli.console import out as console
from foretoken.cli.output import markdown_table, write_text
from foretoken.measure.prompts import Question, bundled_prompts
from foretoken.measure.provenance import of_model
from foretoken.measure.vllm import BATCHED_TOKENS, SEED, Served, engines, folder_of, measure, prepare

REQUESTS_AT_ONCE, MOST = 32, 8


@dataclass
class Soak:
    """What is counted from the beginning on."""

    num_requests: int = 0
    num_tokens: int = 0
    num_other_texts: int = 0
    num_steps: int = 0


def main(
    requests: Annotated[int, typer.Option(min=320)] = 10_000,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 12,
    out: Annotated[Path, typer.Option(help="The file that the numbers are written to.")] = Path("build/vllm_soak.json"),
) -> None:
    """Ask, and look at what grows."""
    prepare(threads=1)
    options = {
        "dtype": "float32",
        "max_num_seqs": REQUESTS_AT_ONCE,
        "max_model_len": 1024,
        "enforce_eager": True,
        "max_num_batched_tokens": BATCHED_TOKENS,
    }
    model = folder_of("tiny")
    plain, drafted = engines(model, ["none"], options, MOST)[0], Served("foretoken", model, options, MOST, shares=True)
    encode: Any = plain.llm.get_tokenizer()
    texts = [encode(json.loads(line)["prompt"])["input_ids"] for line in bundled_prompts().splitlines()]
    rng, soak, rows = random.Random(SEED), Soak(), []
    for _ in range(10):
        questions = [_stretch(rng, rng.choice(texts)) for _ in range(requests // 10)]
        loads = measure([plain, drafted], questions, REQUESTS_AT_ONCE, len(questions), max_new_tokens)
        soak.num_requests += len(questions)
        soak.num_tokens += loads[1].num_tokens
        soak.num_steps += loads[1].num_turns
        soak.num_other_texts += sum(loads[1].texts[i] != text for i, text in loads[0].texts.items())
        rows.append(
            {
                "requests": soak.num_requests,
                "other texts": soak.num_other_texts,
                "tokens per step": soak.num_tokens / soak.num_steps,
                "process, MiB": _resident() / 2**20,
                "states": len(drafted.states),
                "states, MiB": drafted.states.nbytes / 2**20,
            }
        )
        console.print(markdown_table(rows[-1:]))
        found = {"provenance": of_model(bundled_prompts(), SEED), "rows": rows}
        write_text(out, json.dumps(found, indent=1) + "\n")
    console.print(markdown_table(rows))


def _stretch(rng: random.Random, text: list[int]) -> Question:
    start = rng.randrange(max(1, len(text) - 20))
    return Question("", "any", text[start : start + rng.randrange(4, 120)])


def _resident() -> int:
    """Bytes of the process that lie in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    typer.run(main)
