"""Is drafted text plain decoding's to the last bit? Counted over architectures and dtypes, for as long as you like.

    nice -n 19 python -m benchmarks.exact --drafted 1000000

Random models answer plainly and drafted, greedily and sampled: with the plain answer known, in forwards of many sizes,
as chains and among wrong guesses; and with drafters that guess. Each answer is compared by its tokens and by every bit
of the logits that they were chosen from. The control is a chain of the same models whose rows are not kept apart. Every
other model has an output head whose rows are equal in pairs, so that the best two logits of a position are always one
number. A piece of work is a line of the file; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers as tf
import typer

from benchmarks.common import RESULTS, finish, run
from foretoken.core.budget import FixedBudget
from foretoken.core.contracts import Drafter
from foretoken.core.decode import decode
from foretoken.drafters import AdaptiveNgram, LookaheadDrafter
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.exactness import Exactness
from foretoken.engines.transformers.scores import TransformersScores
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.files import writing
from foretoken.measure.check import RecordedTree

VOCAB, LENGTH = 499, 160  # tokens
CHAINS, TREES = (1, 2, 3, 4, 6, 8, 11, 15, 23, 31, 47, 63), (2, 6, 14, 30, 62)  # guesses
CONTROL = 7  # which of the chains is also drafted where rows are not kept apart
DTYPES = torch.float32, torch.bfloat16, torch.float16
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,  # a tied model with random weights repeats its last token
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: tf.LlamaConfig(**SIZES),
    "qwen2": lambda: tf.Qwen2Config(**SIZES),
    "qwen3": lambda: tf.Qwen3Config(**SIZES, head_dim=32),
    "mistral": lambda: tf.MistralConfig(**SIZES, sliding_window=48),
    "gemma2": lambda: tf.Gemma2Config(**SIZES, head_dim=32, sliding_window=48),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**SIZES),
    "phi": lambda: tf.PhiConfig(**SIZES),
}
Answer = tuple[list[int], list[bytes], int]


def main(
    drafted: Annotated[int, typer.Option(min=1, help="Drafted tokens to verify, in the file and now.")] = 1_000_000,
    out: Annotated[Path, typer.Option(help="The file that pieces of work are added to, as JSON lines.")] = (
        RESULTS / "exact.jsonl"
    ),
) -> None:
    """Count the tokens and the logits that drafting changes."""
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(row["model"], row["dtype"], row["seed"]) for row in rows}
    total = sum(row["drafted"] for row in rows)
    for piece in pieces():
        if total >= drafted:
            break
        if piece in done:
            continue
        rows.append(measure(*piece))
        total += rows[-1]["drafted"]
        with writing(out, folders=True) as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    finish(out.with_suffix(".json"), {"rows": rows}, summary(rows))


def pieces() -> Iterator[tuple[str, str, int]]:
    """A model, a dtype and a seed, without end; the seeds rise."""
    seed = 0
    while True:
        for name in CONFIGS:
            yield from ((name, str(dtype).removeprefix("torch."), seed) for dtype in DTYPES)
        seed += 1


def measure(name: str, dtype: str, seed: int) -> dict[str, Any]:
    """Compare the answers of one random model to one prompt."""
    model, exactness = model_of(name, dtype, seed)
    prompt = torch.randint(VOCAB, (20 + seed % 40,), generator=torch.Generator().manual_seed(seed)).tolist()
    row: dict[str, Any] = {"model": name, "dtype": dtype, "seed": seed, "widths": exactness.widths()}
    row |= {"answers": 0, "tokens": 0, "drafted": 0, "differing_tokens": 0, "differing_logits": 0}
    row |= {"parted_without": 0, "other_logits_without": 0}
    for temperature in (0.0, 0.8):
        warpers = tf.LogitsProcessorList([tf.TemperatureLogitsWarper(temperature)]) if temperature else None
        choice = Choice(warpers, seed if temperature else None)
        target, without = (TransformersTarget(model, choice, exact=exact) for exact in (exactness, None))
        tokens, logits, _ = answer(target, None, prompt, 0)
        for drafter, budget in drafters(prompt, tokens):
            found = answer(target, drafter, prompt, budget)
            row["answers"] += 1
            row["tokens"] += len(found[0])
            row["drafted"] += found[2]
            row["differing_tokens"] += differing(found[0], tokens)
            row["differing_logits"] += differing(found[1], logits)
        tokens, logits, _ = answer(without, None, prompt, 0)
        drafter, budget = drafters(prompt, tokens)[CONTROL]
        found = answer(without, drafter, prompt, budget)
        row["parted_without"] += found[0] != tokens
        row["other_logits_without"] += differing(found[1], logits)
    return row


@cache
def model_of(name: str, dtype: str, seed: int) -> tuple[tf.PreTrainedModel, Exactness]:
    """A random model whose greedy text wanders. With an odd seed each token's output row is that of another, too."""
    model_of.cache_clear()
    torch.manual_seed(seed)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 2 / parameter.shape[1] ** 0.5)
        if seed % 2:
            rows = model.get_output_embeddings().weight
            rows[VOCAB - VOCAB // 2 :] = rows[: VOCAB // 2].flip(0).clone()
    model = model.to(getattr(torch, dtype))
    return model, Exactness(model, True)


def drafters(prompt: Sequence[int], tokens: Sequence[int]) -> list[tuple[Drafter, int]]:
    """Those that know the plain answer and those that guess, each with how many guesses it may draft."""
    chain, tree = (RecordedTree([*prompt, *tokens], VOCAB, trees) for trees in (False, True))
    known: list[tuple[Drafter, int]] = [*((chain, size) for size in CHAINS), *((tree, size) for size in TREES)]
    return [*known, (AdaptiveNgram(), 7), (LookaheadDrafter(4, 4, 4), 20)]


def answer(target: TransformersTarget, drafter: Drafter | None, prompt: Sequence[int], budget: int) -> Answer:
    """The tokens, the bits of the logits that each was chosen from, and how many guesses were verified."""
    tokens: list[int] = []
    logits: list[bytes] = []
    drafted = 0
    for step in decode(target, drafter, prompt, max_new_tokens=LENGTH, budget=FixedBudget(budget)):
        assert isinstance(step.scores, TransformersScores)
        rows = step.scores.logits[[node + 1 for node in (-1, *step.path)]].view(torch.uint8)
        logits += [row.numpy().tobytes() for row in rows]
        tokens += step.tokens
        drafted += step.draft.num_guesses
    return tokens, logits, drafted


def differing(found: Sequence[Any], expected: Sequence[Any]) -> int:
    """At how many positions two answers are not the same."""
    return sum(a != b for a, b in zip(found, expected, strict=True))


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums over each dtype, and over all."""
    kinds = [*dict.fromkeys(row["dtype"] for row in rows), "all"]
    counts = [name for name, value in rows[0].items() if isinstance(value, int) and name != "seed"]
    return [
        {"dtype": kind} | {count: sum(row[count] for row in rows if kind in ("all", row["dtype"])) for count in counts}
        for kind in kinds
    ]


if __name__ == "__main__":
    run(main)
