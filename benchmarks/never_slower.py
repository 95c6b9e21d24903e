"""How little drafting can lose: text that gives a drafter nothing to work with, against plain decoding.

The bundled model's forwards take a few milliseconds, so that the time of the drafter and of the budget's trials shows
more than on any model that people use. Three kinds of text: the model's own answers sampled at temperature 1.2, random
tokens, and recorded answers such as translations, if some are given. Random and recorded texts are replayed from their
middle on: the record chooses the tokens, and the model spends the time. Drafted and plain answers alternate.

    python -m benchmarks.never_slower
    python -m benchmarks.never_slower --method ngram-adaptive --dtype float32 --texts traces/wmt24_translation.jsonl.gz

Prints for each dtype and kind of text the geometric mean of the speeds over plain decoding, and the lowest one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from benchmarks.common import RESULTS, Out, Rounds, finish, run
from benchmarks.recorded import background_for, read_texts
from foretoken.engines.transformers.loading import load_model, load_tokenizer
from foretoken.measure.harness import Row, summarise
from foretoken.measure.measured_model import MeasuredModel
from foretoken.measure.methods import choose_methods
from foretoken.measure.prompts import Question, bundled_prompts, parse_prompts
from foretoken.measure.run import Conditions, measure

NEW_TOKENS = 256
MIN_TOKENS = 64  # of an answer, so that its time says something
TEMPERATURE = 1.2
RANDOM_TEXTS = 4
COLUMNS = ("dtype", "kind", "method", "prompts", "same_text", "tokens_per_step", "drafter_ms", "speed", "least")


def main(
    rounds: Rounds = 3,
    dtype: Annotated[list[str], typer.Option(help="Of the model (repeatable).")] = ["float32", "bfloat16"],  # noqa: B006
    method: Annotated[str, typer.Option(help="One of those of `foretoken bench methods`.")] = "mixed-adaptive",
    texts: Annotated[list[Path] | None, typer.Option(help="A file of recorded answers (repeatable).")] = None,
    out: Out = RESULTS / "never-slower.json",
) -> None:
    """Time drafting on text that is hard to predict."""
    records = read_texts(texts or [])
    tokenizer, background = load_tokenizer("tiny"), background_for("tiny")
    questions = [*sampled_questions(tokenizer), *replayed_questions(tokenizer, records)]
    conditions = Conditions(TEMPERATURE, rounds, NEW_TOKENS)
    rows: list[Row] = []
    for name in dtype:
        model = MeasuredModel(load_model("tiny", name), background)
        measured = measure(model, questions, choose_methods([method], False), conditions)
        for found in track(measured, f"{name}: texts without repetition, in turns", len(questions)):
            rows += [row for row in found if row.tokens >= MIN_TOKENS * rounds]
    finish(out, {"rows": [row.as_dict() for row in rows]}, table(rows), workload=bundled_prompts())


def sampled_questions(tokenizer: PreTrainedTokenizerBase) -> Iterator[Question]:
    """Every other prompt of those that come with the package."""
    for question in parse_prompts(bundled_prompts(), lambda text: tokenizer(text)["input_ids"])[::2]:
        yield Question(question.id, "sampled at 1.2", question.prompt)


def replayed_questions(tokenizer: PreTrainedTokenizerBase, records: Mapping[str, Sequence[str]]) -> Iterator[Question]:
    """Random tokens and recorded texts; each continues its first half with its second."""
    texts: dict[str, list[list[int]]] = {
        "random tokens": [random_tokens(len(tokenizer), i) for i in range(RANDOM_TEXTS)]
    }
    texts |= {kind: [tokenizer(text)["input_ids"][: 2 * NEW_TOKENS] for text in some] for kind, some in records.items()}
    for kind, some in texts.items():
        for number, text in enumerate(some):
            half = len(text) // 2
            yield Question(f"{kind} {number}", kind, text[:half], text[half:])


def random_tokens(vocab_size: int, seed: int) -> list[int]:
    """Tokens that nobody can predict."""
    rng = random.Random(seed)
    return [rng.randrange(vocab_size) for _ in range(2 * NEW_TOKENS)]


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each dtype and kind of text."""
    lines = summarise([row for row in rows if not row.looped])
    return [
        {name: line[name] for name in COLUMNS} for line in lines if line["kind"] != "all" and line["method"] != "plain"
    ]


if __name__ == "__main__":
    run(main)
