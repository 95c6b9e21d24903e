"""What drafting gains where a forward costs what a real model's does: answers replayed over random weights.

A record chooses the tokens, and a model of Qwen2-0.5B's shape in bfloat16, whose weights are random, spends the time:
its forwards cost the same whatever it reads. Plain decoding, the n-gram core and transformers' own prompt lookup take
turns. No time has the prefill in it; transformers drafts at the prefill too, and is spared that forward.

    python -m benchmarks.replayed
    python -m benchmarks.replayed --data traces --tokenizer tokenizer.json.gz --per-set 1 --rounds 1

Without recorded answers the bundled model's own are replayed, sampled at temperature 0.8. Prints for each set the speed
over plain decoding, what share that is of the tokens per step, and the speed over transformers' prompt lookup.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from benchmarks.common import RESULTS, Data, Out, Rounds, TokenizerFile, finish, run
from benchmarks.recorded import background_for, read_sets
from foretoken.core.decode import decode
from foretoken.core.errors import ForetokenError
from foretoken.engines.transformers.loading import load_model, load_tokenizer
from foretoken.measure.harness import Answer, Row
from foretoken.measure.measured_model import MeasuredModel
from foretoken.measure.methods import choose_methods
from foretoken.measure.prompts import Question, bundled_prompts, parse_prompts
from foretoken.measure.run import SEED, Conditions, measure
from foretoken.replay.read import MIN_OUTPUT

MAX_PROMPT, MAX_OUTPUT = 512, 64  # tokens of a recorded answer's, so that a round takes seconds
OURS, THEIRS = "ngram-adaptive", "transformers-lookup"


def main(
    data: Data = None,
    tokenizer: TokenizerFile = None,
    per_set: Annotated[int, typer.Option(min=1, help="Answers of each file.")] = 2,
    rounds: Rounds = 3,
    out: Out = RESULTS / "replayed.json",
) -> None:
    """Time recorded answers over a random model of 0.5B parameters."""
    if data and tokenizer:
        questions, background = list(recorded_answers(data, tokenizer, per_set)), background_for(tokenizer)
    elif data or tokenizer:
        raise ForetokenError("Recorded answers need both --data and --tokenizer: give both or none.")
    else:
        questions, background = list(own_answers()), None
    model = MeasuredModel(qwen2_half_billion(), background)
    measured = measure(model, questions, choose_methods([OURS, THEIRS], False), Conditions(rounds=rounds))
    rows = [row for found in track(measured, "replayed over 0.5B random weights", len(questions)) for row in found]
    sets = by_set(rows)
    finish(out, {"rows": [row.as_dict() for row in rows], "sets": sets}, sets, [over_all(sets)])


def recorded_answers(data: Data, tokenizer: str, per_set: int) -> Iterator[Question]:
    """The first answers of every file."""
    for name, traces in read_sets(data or [], tokenizer, per_set).items():
        for number, trace in enumerate(traces):
            prompt, record = trace.prompt.tolist()[-MAX_PROMPT:], trace.record.tolist()[:MAX_OUTPUT]
            yield Question(f"{name} {number}", name, prompt, record)


def own_answers() -> Iterator[Question]:
    """Two answers of the bundled model to prompts of each kind."""
    model, tokenizer = MeasuredModel(load_model("tiny", "float32", "cpu"), asked_exact=False), load_tokenizer("tiny")
    for question in parse_prompts(bundled_prompts(), lambda text: list(tokenizer(text)["input_ids"]), limit=2):
        target = model.target(0.8, SEED)
        steps = decode(target, None, question.prompt, max_new_tokens=MAX_OUTPUT, stop_tokens=model.stop_tokens)
        answer = Answer.of(steps)
        if len(answer.tokens) >= MIN_OUTPUT:
            yield Question(question.id, question.kind, question.prompt, answer.tokens)


def qwen2_half_billion() -> PreTrainedModel:
    """A random model of Qwen2-0.5B's shape, 494M parameters, in bfloat16."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    model: PreTrainedModel = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    return model


def by_set(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each set: geometric means over its answers."""
    lines = []
    for name in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == name and row.method == OURS]
        speed = statistics.geometric_mean(row.speed for row in own)
        theirs = statistics.geometric_mean(row.speed for row in rows if row.kind == name and row.method == THEIRS)
        tokens_per_step = 1 + sum(row.accepted for row in own) / sum(row.steps for row in own)
        lines.append(
            {
                "set": name,
                "answers": len(own),
                "tokens_per_step": tokens_per_step,
                "speed": speed,
                "share": speed / tokens_per_step,
                "over_lookup": speed / theirs,
            }
        )
    return lines


def over_all(sets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means over the sets, and the lowest values."""
    line: dict[str, Any] = {"sets": len(sets)}
    for name in ("speed", "share", "over_lookup"):
        line |= {
            name: statistics.geometric_mean(row[name] for row in sets),
            f"least_{name}": min(row[name] for row in sets),
        }
    return line


if __name__ == "__main__":
    run(main)
