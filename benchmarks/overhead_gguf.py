"""What a step on a GGUF file costs beside llama.cpp's forward, by processor time.

    python -m benchmarks.overhead_gguf

Random models of the bundled one's shape answer plainly and with our default, greedily and sampled, on one thread. The
time within ``llama_decode`` is taken off. Their vocabularies are the bundled one, and that with tokens that no text
has. Prints milliseconds of a step, within the forward and beside it: the loop, the choice of a token, and of drafted
steps the drafter and the budget.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.common import RESULTS, SEED, Out, finish, run
from foretoken.core.decode import decode
from foretoken.drafters import DEFAULT_DRAFTER, Parts, recipe_of
from foretoken.engines.llama_cpp.engine import LlamaCppEngine
from foretoken.engines.llama_cpp.library import library
from foretoken.engines.transformers.loading import TINY
from foretoken.export.gguf import export_gguf
from foretoken.memory.costs import costs_of
from foretoken.memory.namespace import Namespace

NEW_TOKENS, PROMPT, TIMES = 200, 20, 3


def main(
    vocab: Annotated[list[int] | None, typer.Option(help="Tokens of a vocabulary (repeatable).")] = None,
    out: Out = RESULTS / "overhead_gguf.json",
) -> None:
    """Time what a step costs beside the forward."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in vocab or [4096, 32_000]:
            path = Path(folder) / f"{size}.gguf"
            export_gguf(str(random_model(Path(folder) / str(size), size)), path, "q8_0")
            rows += measure(LlamaCppEngine(path, 512, 1, exact=True))
    finish(out, {"rows": rows}, rows)


def random_model(folder: Path, vocab_size: int, **shape: int) -> Path:
    """A folder with random weights of the bundled model's shape, and its tokenizer with further tokens.

    Args:
        folder: Where it is made.
        vocab_size: How many tokens there are.
        **shape: What is another in the config.
    """
    folder.mkdir()
    for name in ("tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, folder)
    tokenizer = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    known = tokenizer["model"]["vocab"]
    known |= {f"unused{token}": token for token in range(len(known), vocab_size)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    torch.manual_seed(SEED)
    config = AutoConfig.from_pretrained(TINY)
    for name, value in ({"vocab_size": vocab_size} | shape).items():
        setattr(config, name, value)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def measure(engine: LlamaCppEngine) -> Iterator[dict[str, Any]]:
    """A line for each way of decoding."""
    for temperature in (0.0, 0.8):
        for name in ("none", DEFAULT_DRAFTER):
            least = min((step_times(engine, name, temperature) for _ in range(TIMES)), key=lambda pair: pair[1])
            yield {
                "vocab_size": engine.vocab_size,
                "decoding": f"sampled at {temperature}" if temperature else "greedy",
                "drafter": name,
                "forward_ms": 1000 * least[0],
                "overhead_ms": 1000 * least[1],
                "tokens_per_step": least[2],
            }


def step_times(engine: LlamaCppEngine, name: str, temperature: float) -> tuple[float, float, float]:
    """Seconds of a step within the forward and beside it, and the tokens of one."""
    target, recipe, namespace = engine.target(temperature, SEED), recipe_of(name), Namespace()
    costs = costs_of(engine.cost_key, engine.target)
    drafter = None if recipe is None else recipe.make(Parts.of(engine, target, lambda: namespace.ngrams, costs))
    budget = None if recipe is None else namespace.new_budget(costs)
    with forwards() as spent:
        started, steps = 0.0, -1
        prompt = list(range(100, 100 + PROMPT))
        for _ in decode(target, drafter, prompt, max_new_tokens=NEW_TOKENS, budget=budget):
            steps += 1
            if steps == 0:
                started, spent[0] = time.thread_time(), 0.0
        seconds = time.thread_time() - started
    return spent[0] / steps, (seconds - spent[0]) / steps, (NEW_TOKENS - 1) / steps


@contextmanager
def forwards() -> Iterator[list[float]]:
    """The processor time within llama.cpp's forwards."""
    calls, spent = library(), [0.0]
    forward = calls.llama_decode

    def timed(*arguments: Any) -> Any:
        started = time.thread_time()
        code = forward(*arguments)
        spent[0] += time.thread_time() - started
        return code

    calls.llama_decode = timed  # type: ignore[attr-defined]
    try:
        yield spent
    finally:
        calls.llama_decode = forward  # type: ignore[attr-defined]


if __name__ == "__main__":
    run(main)
