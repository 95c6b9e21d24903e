"""What drafting gains and loses on models with a recurrent state, beside a model of attention alone of the same size.

Random weights write no edits, so the bundled model's answers to the prompts of edits are recorded, sampled at
temperature 0.8, and replayed: the record chooses the tokens, and a random model of about 60M parameters spends the
time. Random tokens are replayed as well, which nobody can predict. Drafted and plain answers alternate.

    python -m benchmarks.recurrent
    python -m benchmarks.recurrent --shape qwen3.5 --shape attention --rounds 5 --own-clock

Prints for each shape and kind of text the geometric mean of the speeds over plain decoding and the lowest one, and of
edits the share of the speed that the model of attention alone has.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
import transformers as tf
import typer
from rich.progress import track
from transformers import PreTrainedModel

from benchmarks.common import RESULTS, SEED, Out, OwnClock, Rounds, finish, run, take_own_clock
from benchmarks.never_slower import random_tokens
from benchmarks.recorded import background_for
from foretoken.core.decode import decode
from foretoken.core.errors import ForetokenError
from foretoken.engines.transformers.loading import load_model, load_tokenizer
from foretoken.measure.harness import Answer, Row
from foretoken.measure.measured_model import MeasuredModel
from foretoken.measure.methods import choose_methods
from foretoken.measure.prompts import Question, bundled_prompts, parse_prompts
from foretoken.measure.run import Conditions, measure

ATTENTION = "attention"
LAYERS, VOCAB = 16, 4096  # the vocabulary is the bundled model's
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 512,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
MAMBA: dict[str, Any] = {"mamba_d_head": 64, "mamba_d_state": 64, "mamba_n_groups": 1}
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}
ONE_IN_FOUR = (["linear_attention"] * 3 + ["full_attention"]) * (LAYERS // 4)
SHAPES: dict[
    str, Any
] = {  # each of 58M to 59M parameters; what else they have is as published, such as scans of 256 rows
    ATTENTION: lambda: tf.Qwen3Config(**SIZES, intermediate_size=1792, head_dim=64),
    "qwen3.5": lambda: tf.Qwen3_5TextConfig(
        **SIZES, **LINEAR, intermediate_size=1536, head_dim=64, layer_types=ONE_IN_FOUR
    ),
    "granite-4": lambda: tf.GraniteMoeHybridConfig(
        **SIZES, **MAMBA, mamba_n_heads=16, num_local_experts=0, shared_intermediate_size=1280, layer_types=ONE_IN_FOUR
    ),
    "falcon-h1": lambda: tf.FalconH1Config(**SIZES, **MAMBA, intermediate_size=1216, mamba_d_ssm=512, mamba_n_heads=8),
    "lfm2": lambda: tf.Lfm2Config(
        **SIZES,
        intermediate_size=1664,
        block_auto_adjust_ff_dim=False,
        layer_types=(["conv"] * 3 + ["full_attention"]) * (LAYERS // 4),
    ),
}
EDITS, RANDOM = 6, 3  # texts
NEW_TOKENS = 128
TEMPERATURE = 0.8


def main(
    shape: Annotated[list[str] | None, typer.Option(help="Of SHAPES (repeatable). All if none is named.")] = None,
    rounds: Rounds = 3,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    dtype: Annotated[str, typer.Option(help="Of the models.")] = "float32",
    own_clock: OwnClock = False,
    out: Out = RESULTS / "recurrent.json",
) -> None:
    """Time edits and random tokens over random models with and without a recurrent state."""
    torch.set_num_threads(threads)
    if own_clock:
        take_own_clock(threads)
    questions = [*edits(), *unpredictable()]
    rows: dict[str, list[Row]] = {}
    for name in shape or SHAPES:
        model = MeasuredModel(random_model(name, dtype), background_for("tiny"))
        measured = measure(model, questions, choose_methods(["mixed-adaptive"], False), Conditions(rounds=rounds))
        rows[name] = [row for found in track(measured, name, len(questions)) for row in found]
    found = {name: [row.as_dict() for row in some] for name, some in rows.items()}
    finish(out, {"rows": found}, table(rows), workload=bundled_prompts())


def edits() -> Iterator[Question]:
    """The bundled model's answers to its prompts of edits."""
    model, tokenizer = MeasuredModel(load_model("tiny", "float32", "cpu"), asked_exact=False), load_tokenizer("tiny")
    asked = parse_prompts(bundled_prompts(), lambda text: tokenizer(text)["input_ids"])
    for question in [one for one in asked if one.kind == "edit"][:EDITS]:
        target = model.target(TEMPERATURE, SEED)
        steps = decode(target, None, question.prompt, max_new_tokens=NEW_TOKENS, stop_tokens=model.stop_tokens)
        answer = Answer.of(steps)
        yield Question(question.id, question.kind, question.prompt, answer.tokens)


def unpredictable() -> Iterator[Question]:
    """Random tokens, of which the first half is the prompt."""
    for number in range(RANDOM):
        text = random_tokens(VOCAB, number)
        yield Question(f"random {number}", "random", text[:-NEW_TOKENS], text[-NEW_TOKENS:])


def random_model(shape: str, dtype: str) -> PreTrainedModel:
    """A random model of a shape.

    Raises:
        ForetokenError: If there is no such shape.
    """
    if shape not in SHAPES:
        raise ForetokenError(f"There is no shape {shape!r}: take one of {', '.join(SHAPES)}.")
    torch.manual_seed(SEED)
    model: PreTrainedModel = tf.AutoModelForCausalLM.from_config(SHAPES[shape](), dtype=getattr(torch, dtype))
    model.eval()
    return model


def table(rows: dict[str, list[Row]]) -> list[dict[str, Any]]:
    """A line for each shape and kind of text."""
    lines = []
    for shape, found in rows.items():
        for kind in dict.fromkeys(row.kind for row in found):
            own, attention = drafted(found, kind), drafted(rows.get(ATTENTION, []), kind)
            speed = statistics.geometric_mean(own)
            share = speed / statistics.geometric_mean(attention) if attention and kind == "edit" else None
            steps = sum(row.steps for row in found if row.kind == kind and row.method != "plain")
            accepted = sum(row.accepted for row in found if row.kind == kind and row.method != "plain")
            lines.append(
                {
                    "shape": shape,
                    "kind": kind,
                    "texts": len(own),
                    "tokens_per_step": 1 + accepted / steps,
                    "speed": speed,
                    "least": min(own),
                    "of_attention": share,
                }
            )
    return lines


def drafted(rows: Sequence[Row], kind: str) -> list[float]:
    """The speeds of drafted answers over plain ones."""
    return [row.speed for row in rows if row.kind == kind and row.method != "plain"]


if __name__ == "__main__":
    run(main)
