"""What trained heads are worth on the bundled model: how often a head is right, and how many tokens a step gives.

No prompt is of a text that the heads or the model learned from. Every drafted text is compared with the plain one.

    python -m benchmarks.speculators
    python -m benchmarks.speculators --speculator FOLDER --before FOLDER --blockwise FOLDER

Prints how often each head's best guess is right after the true tokens, beside the model's own best; then the tokens of
a step by kind of text, of all steps together; then what one method brings over another, as a geometric mean over the
kinds, with the worst kind. Greedy answers that loop are left out. ``--before`` names the heads as they were before the
stage on the model's own texts; what that stage brings comes with an interval over the answers.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from torch import nn
from transformers import PreTrainedModel

from benchmarks.common import PROMPTS, RESULTS, SEED, Out, finish, run
from benchmarks.recorded import background_for
from foretoken.core.errors import ModelError
from foretoken.drafters import Mixed, Recipe, RefinedSpeculator, Speculator
from foretoken.engines.transformers.loading import TINY, load_model, load_tokenizer
from foretoken.engines.transformers.speculator import find_speculator
from foretoken.engines.transformers.states import output_head
from foretoken.measure.harness import Row
from foretoken.measure.loops import loops
from foretoken.measure.measured_model import MeasuredModel
from foretoken.measure.methods import PLAIN, Method
from foretoken.measure.prompts import Question, bundled_prompts, parse_prompts
from foretoken.measure.run import Conditions, measure
from foretoken.measure.speculator import record
from foretoken.speculators.formats import load_speculator

ROWS, FLOOR, ALL = 24, 0.003, 60
BY_TEXT, HEADS, BOTH = "n-grams, 24 rows", "heads, 24 rows", "n-grams and heads, 24 rows"
PUBLISHED, NO_NOISE = "published tree", "heads, 24 rows, no noise"
REFINED_BY_NGRAMS, REFINED_BY_NETWORK = ", refined", ", refined by the rescorer"
METHODS = [
    PLAIN,
    Method("chain of 4", Speculator(floor=0.0, width=1, noise=False), 4),
    Method(PUBLISHED, Speculator("4x3x2x2", noise=False), ALL),
    Method(NO_NOISE, Speculator(floor=FLOOR, noise=False), ROWS),
    Method(HEADS, Speculator(floor=FLOOR), ROWS),
    Method(BY_TEXT, Mixed(floor=FLOOR, heads=False), ROWS),
    Method(BOTH, Mixed(floor=FLOOR, heads=True), ROWS),
]
SHAPES: dict[str, tuple[int, dict[str, Any]]] = {
    "chain": (4, {"floor": 0.0, "width": 1}),
    "16 best paths": (ALL, {"tree": "paths", "leaves": 16}),
    "24 rows": (ROWS, {"floor": FLOOR}),
}
REFINEMENTS: dict[str, Callable[..., Recipe]] = {
    "": Speculator,
    REFINED_BY_NGRAMS: RefinedSpeculator,
    REFINED_BY_NETWORK: partial(RefinedSpeculator, by="network"),
}
REFINED = [
    PLAIN,
    *(
        Method(f"blockwise, {shape}{name}", recipe(noise=False, **options), drafted)
        for shape, (drafted, options) in SHAPES.items()
        for name, recipe in REFINEMENTS.items()
    ),
]
GAINS = [
    (HEADS, [NO_NOISE]),
    (BOTH, [HEADS, BY_TEXT]),
    *((f"blockwise, {shape}{name}", [f"blockwise, {shape}"]) for shape in SHAPES for name in REFINEMENTS if name),
]
RESAMPLED = 2000


def main(
    speculator: Annotated[str, typer.Option(help="Folder of an MLP speculator.")] = "auto",
    before: Annotated[str | None, typer.Option(help="The same before stage 2.")] = None,
    blockwise: Annotated[str, typer.Option(help="Folder of blockwise heads.")] = "blockwise",
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts to take of each kind.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Of an answer.")] = 200,
    out: Out = RESULTS / "speculators.json",
) -> None:
    """Measure what trained heads are worth."""
    tokenizer = load_tokenizer("tiny")
    workload = bundled_prompts() + (PROMPTS / "openings.jsonl").read_text(encoding="utf-8")
    questions = parse_prompts(workload, lambda text: tokenizer(text)["input_ids"], limit)
    model, background = load_model("tiny", "float32"), background_for("tiny")
    found: dict[str, Any] = {"heads": [], "tokens_per_step": [], "gains": []}
    for conditions in (Conditions(0.8, 1, max_new_tokens), Conditions(0.0, 1, max_new_tokens)):
        rows: list[Row] = []
        for folder, methods in ((speculator, METHODS), (blockwise, REFINED)):
            found["heads"] += head_rows(model, questions, conditions, folder)
            rows += measured(MeasuredModel(model, background, speculator=folder), questions, methods, conditions)
        counts = tokens_and_steps(rows)
        found["tokens_per_step"] += table(counts, conditions.decoding)
        found["gains"] += gains(counts, conditions.decoding)
        if before is not None:
            trees = [method for method in METHODS if method.name in (PLAIN.name, PUBLISHED)]
            old = measured(MeasuredModel(model, background, speculator=before), questions, trees, conditions)
            found["gains"].append(stage_two(rows, old, conditions.decoding))
    finish(out, found, found["heads"], found["tokens_per_step"], found["gains"], workload=workload)


def head_rows(
    model: PreTrainedModel, questions: Sequence[Question], conditions: Conditions, speculator: str
) -> Iterator[dict[str, Any]]:
    """How often each head's best guess is right, given the true tokens before it, and how often the model's is."""
    folder = find_speculator(str(TINY), speculator)
    if folder is None:
        raise ModelError("There are no trained heads in the model's folder: name theirs with --speculator.")
    head = output_head(model)
    assert isinstance(head, nn.Linear)
    module = load_speculator(folder, head.in_features, head.out_features, head).float()
    right, count = torch.zeros(module.num_heads + 1), 0
    model_alone = MeasuredModel(model, asked_exact=False)
    target = model_alone.target(conditions.temperature, SEED)
    for question in track(questions, f"{conditions.decoding}: {speculator}"):
        recording = record(target, question, conditions, model_alone.stop_tokens)
        length = len(recording.tokens) - module.num_heads - 1
        if loops(recording.tokens) or length < 1:
            continue
        ids = torch.tensor([[question.prompt[-1], *recording.tokens]])
        with torch.inference_mode():
            states = torch.stack(list(recording.states[:length]))[None]
            guesses = [head(states), *module.head_logits(states, ids)]
        for i, logits in enumerate(guesses):
            right[i] += (logits.argmax(-1) == ids[:, 1 + i : 1 + i + length]).sum()
        count += length
    shares = (right / count).tolist()
    names = ["the model", *(f"head {i}" for i in range(1, module.num_heads + 1))]
    of_heads = {"decoding": conditions.decoding, "heads": folder.name, "tokens": count}
    yield of_heads | dict(zip(names, shares, strict=True))


def measured(
    model: MeasuredModel, questions: Sequence[Question], methods: Sequence[Method], conditions: Conditions
) -> list[Row]:
    """Rows of the answers that do not loop."""
    said = f"{conditions.decoding}: {len(methods)} methods"
    answered = track(measure(model, questions, methods, conditions), said, len(questions))
    return [row for rows in answered for row in rows if not row.looped and row.method != PLAIN.name]


Counts = Mapping[str, Mapping[str, tuple[int, int]]]


def tokens_and_steps(rows: Sequence[Row]) -> Counts:
    """Of each method and kind of text."""
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    for row in rows:
        of_kinds = counts.setdefault(row.method, {})
        tokens, steps = of_kinds.get(row.kind, (0, 0))
        of_kinds[row.kind] = tokens + row.steps + row.accepted, steps + row.steps
    return counts


def table(counts: Counts, decoding: str) -> list[dict[str, Any]]:
    """A line for each method: tokens of a step, over all steps and by kind."""
    return [
        {"decoding": decoding, "method": method, "all": per_step(list(of_kinds.values()))}
        | {kind: per_step([one]) for kind, one in sorted(of_kinds.items())}
        for method, of_kinds in counts.items()
    ]


def gains(counts: Counts, decoding: str) -> Iterator[dict[str, Any]]:
    """What a method brings over the best of others, kind by kind."""
    for method, others in GAINS:
        if method not in counts:
            continue
        ratios = {
            kind: per_step([one]) / max(per_step([counts[other][kind]]) for other in others)
            for kind, one in counts[method].items()
        }
        worst = min(ratios, key=lambda kind: ratios[kind])
        over = others[0] if len(others) == 1 else "the better alone"
        yield {
            "decoding": decoding,
            "method": method,
            "over": over,
            "gain": statistics.geometric_mean(ratios.values()) - 1,
            "worst": ratios[worst] - 1,
            "of": worst,
        }


def stage_two(after: Sequence[Row], before: Sequence[Row], decoding: str) -> dict[str, Any]:
    """What the heads' second stage brings the published tree, and where 95 % of resampled sets of answers are."""
    new = {row.prompt: row for row in after if row.method == PUBLISHED}
    pairs = [
        (
            (new[old.prompt].steps + new[old.prompt].accepted, new[old.prompt].steps),
            (old.steps + old.accepted, old.steps),
        )
        for old in before
        if old.method == PUBLISHED and old.prompt in new
    ]
    rng = random.Random(SEED)

    def gain(some: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> float:
        return per_step([one for one, _ in some]) / per_step([other for _, other in some]) - 1

    resampled = sorted(gain(rng.choices(pairs, k=len(pairs))) for _ in range(RESAMPLED))
    low, high = resampled[RESAMPLED * 25 // 1000], resampled[RESAMPLED * 975 // 1000]
    return {
        "decoding": decoding,
        "method": PUBLISHED,
        "over": "before stage 2",
        "gain": gain(pairs),
        "worst": low,
        "of": f"the interval's end; the other is {high:.3f}",
    }


def per_step(counts: Sequence[tuple[int, int]]) -> float:
    """Tokens of a step."""
    return sum(tokens for tokens, _ in counts) / sum(steps for _, steps in counts)


if __name__ == "__main__":
    run(main)
