"""What drafting gains on GGUF files whose forwards take what a small real model's do: answers over random weights.

The bundled model's answers to its prompts are recorded, greedily and sampled at temperature 0.8. A random Llama of
about 90M parameters and the same vocabulary, as a GGUF file of each type, spends the time of its forwards in llama.cpp,
while the record chooses the tokens. Plain decoding and the default drafter take turns, on one thread, by the
processor's time for this process. Greedy and sampled answers have a memory and a budget each.

    python -m benchmarks.replayed_gguf --type q8_0 --type q4_0

Prints what rows cost, and for each type and kind of text the geometric mean of the speeds over plain decoding and the
lowest one.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track

from benchmarks.common import RESULTS, SEED, Out, Rounds, finish, run, take_own_clock
from benchmarks.overhead_gguf import random_model
from benchmarks.recorded import background_for
from foretoken.core.decode import decode
from foretoken.engines.llama_cpp.engine import LlamaCppEngine
from foretoken.engines.transformers.loading import load_model, load_tokenizer
from foretoken.export.gguf import export_gguf
from foretoken.measure.harness import Answer, Row
from foretoken.measure.measured_model import MeasuredEngine, MeasuredModel
from foretoken.measure.methods import choose_methods
from foretoken.measure.prompts import Question, bundled_prompts, parse_prompts
from foretoken.measure.run import Conditions, measure

OURS = "mixed-adaptive"
VOCAB = 4096  # the bundled model's
SHAPE = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
NEW_TOKENS, MIN_TOKENS, PER_KIND = 128, 32, 2
TEMPERATURES = 0.0, 0.8


def main(
    weights: Annotated[list[str] | None, typer.Option("--type", help="Of the file (repeatable).")] = None,
    rounds: Rounds = 3,
    out: Out = RESULTS / "replayed_gguf.json",
) -> None:
    """Time recorded answers over random GGUF files."""
    take_own_clock(1)
    questions = {temperature: list(own_answers(temperature)) for temperature in TEMPERATURES}
    costs, lines, rows = list[dict[str, Any]](), list[dict[str, Any]](), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        model = str(random_model(Path(folder) / "model", VOCAB, **SHAPE))
        for kind in weights or ["q8_0", "q4_0", "f16"]:
            path = Path(folder) / f"{kind}.gguf"
            export_gguf(model, path, kind)
            engine = MeasuredEngine(LlamaCppEngine(path, 2048, 1), background_for("tiny"))
            costs.append({"type": kind, "exact": engine.exact} | price(engine))
            for temperature, asked in questions.items():
                measured = measure(engine, asked, choose_methods([OURS], False), Conditions(rounds=rounds))
                label = f"{kind}, {decoding(temperature)}"
                found = [row for some in track(measured, label, len(asked)) for row in some if row.method == OURS]
                lines += table(kind, found)
                rows += found
    finish(out, {"costs": costs, "rows": [row.as_dict() for row in rows]}, costs, lines, workload=bundled_prompts())


def own_answers(temperature: float) -> Iterator[Question]:
    """Answers of the bundled model to prompts of each kind."""
    model, tokenizer = MeasuredModel(load_model("tiny", "float32", "cpu"), asked_exact=False), load_tokenizer("tiny")
    for question in parse_prompts(bundled_prompts(), lambda text: list(tokenizer(text)["input_ids"]), limit=PER_KIND):
        target = model.target(temperature, SEED)
        steps = decode(target, None, question.prompt, max_new_tokens=NEW_TOKENS, stop_tokens=model.stop_tokens)
        answer = Answer.of(steps)
        if len(answer.tokens) >= MIN_TOKENS:
            kind = f"{question.kind}, {decoding(temperature)}"
            yield Question(question.id, kind, question.prompt, answer.tokens)


def decoding(temperature: float) -> str:
    """In words."""
    return Conditions(temperature).decoding


def price(engine: MeasuredEngine) -> dict[str, float]:
    """Milliseconds of a plain step, and how many of those steps over several rows take."""
    plain = engine.costs.seconds(1)
    return {"ms": 1000 * plain} | {f"{rows} rows": engine.costs.seconds(rows) / plain for rows in (2, 4, 8, 16, 32)}


def table(weights: str, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """A line for each kind of text."""
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        steps = sum(row.steps for row in own)
        yield {
            "type": weights,
            "text": kind,
            "answers": len(own),
            "tokens_per_step": 1 + sum(row.accepted for row in own) / steps,
            "speed": statistics.geometric_mean(row.speed for row in own),
            "least": min(row.speed for row in own),
        }


if __name__ == "__main__":
    run(main)
