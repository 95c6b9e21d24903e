"""What exactness costs, and whether it holds, on a model of usual size: random weights of Qwen2-0.5B's shape.

    python -m benchmarks.exact_costs
    python -m benchmarks.exact_costs --part steps --own-clock

``rows``: committed rows whose logits are compared bit for bit with those of plain decoding, in chains and among wrong
guesses, and as a control a tenth of them where rows are not kept apart. ``steps``: the time of a step over several
rows, exact and not, in turns. ``gain``: answers of the bundled model are replayed, on this model and on the bundled
one, plainly and drafted, with exactness and without; each gain is against plain decoding with the same setting.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.common import RESULTS, SEED, Out, OwnClock, Rounds, finish, run, take_own_clock
from benchmarks.replayed import OURS, own_answers, qwen2_half_billion
from foretoken.core.draft import Draft
from foretoken.core.errors import ForetokenError
from foretoken.engines.transformers.exactness import Exactness
from foretoken.engines.transformers.loading import load_model
from foretoken.engines.transformers.scores import TransformersScores
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.measure.harness import Row
from foretoken.measure.measured_model import MeasuredModel
from foretoken.measure.methods import choose_methods
from foretoken.measure.run import Conditions, measure

PARTS = "rows", "steps", "gain"
CONTEXT = 1000  # tokens before the rows that are compared
CONTEXTS = 1000, 4000  # tokens before a step that is timed
WIDTHS = 1, 4, 8, 16  # rows of such a step
MOST = 15  # guesses of a draft whose rows are compared
CHUNK = 512  # tokens of a prompt at once


def main(
    part: Annotated[list[str] | None, typer.Option(help="rows, steps or gain (repeatable). All if none.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the models.")] = "bfloat16",
    rows: Annotated[int, typer.Option(min=1, help="Committed rows to compare.")] = 2000,
    turns: Annotated[int, typer.Option(min=1, help="Steps of each kind that are timed; medians count.")] = 20,
    rounds: Rounds = 1,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    own_clock: OwnClock = False,
    out: Out = RESULTS / "exact_costs.json",
) -> None:
    """Compare rows, time steps and measure gains with exactness and without."""
    torch.set_num_threads(threads)
    if own_clock:
        take_own_clock(threads)
    if unknown := set(part or ()) - set(PARTS):
        raise ForetokenError(f"There is no part {sorted(unknown)[0]!r}: take some of {', '.join(PARTS)}.")
    parts: dict[str, Any] = {
        "rows": lambda: compared(dtype, rows),
        "steps": lambda: timed(dtype, turns),
        "gain": lambda: gained(dtype, rounds),
    }
    found = {name: list(parts[name]()) for name in part or PARTS}
    finish(out, found | {"dtype": dtype, "threads": threads}, *found.values())


@cache
def half_billion(dtype: str) -> PreTrainedModel:
    """The model."""
    model: PreTrainedModel = qwen2_half_billion().to(getattr(torch, dtype))
    return model


def text_of(length: int) -> list[int]:
    """Random tokens of the model's."""
    chance = torch.Generator().manual_seed(SEED)
    found: list[int] = torch.randint(half_billion("bfloat16").config.vocab_size, (length,), generator=chance).tolist()
    return found


def compared(dtype: str, rows: int) -> Iterator[dict[str, Any]]:
    """How many of the rows had the bits of plain decoding, with exactness and without."""
    model = half_billion(dtype)
    for exact, count in ((Exactness(model, True), rows), (None, -(-rows // 10))):
        target, text = TransformersTarget(model, exact=exact, prefill_chunk=CHUNK), text_of(CONTEXT + count)
        plain, drafted = (list(digests(target, text, drafts)) for drafts in (False, True))
        equal = sum(one == other for one, other in zip(plain, drafted, strict=True))
        widths = "as they come" if exact is None else " ".join(map(str, exact.widths()))
        yield {"dtype": dtype, "exact": exact is not None, "rows": count, "bit_equal": equal, "widths": widths}


def digests(target: TransformersTarget, text: Sequence[int], drafts: bool) -> Iterator[bytes]:
    """Of the logits of each row after the context, committed by plain steps or as drafts of many sizes."""
    target.prefill(text[:CONTEXT])
    at = CONTEXT
    while at < len(text):
        size = min(at % (MOST + 1), len(text) - at - 1) if drafts else 0
        draft, path = among_wrong(text[at + 1 : at + 1 + size], as_tree=at % 2 == 0)
        logits = logits_of(target, text[at], draft)
        for node in (-1, *path):
            yield hashlib.sha256(logits[node + 1].contiguous().view(torch.uint8).numpy().tobytes()).digest()
        target.keep(path)
        at += 1 + size


def among_wrong(right: Sequence[int], as_tree: bool) -> tuple[Draft, list[int]]:
    """The right tokens, as a chain or each after a wrong one; and the nodes at which they stand."""
    if not as_tree:
        return Draft.chain(right), list(range(len(right)))
    tokens = [token for one in right for token in (one + 1 if one else one, one)]
    parents = [2 * i - 1 for i in range(len(right)) for _ in range(2)]
    return Draft(tuple(tokens), tuple(parents)), list(range(1, 2 * len(right), 2))


def logits_of(target: TransformersTarget, token: int, draft: Draft) -> Tensor:
    """The logits of all rows."""
    scores = target.score(token, draft)
    assert isinstance(scores, TransformersScores)
    return scores.logits


def timed(dtype: str, turns: int) -> Iterator[dict[str, Any]]:
    """What exact steps take as a share of the others, over the rows of chains and of trees."""
    model = half_billion(dtype)
    targets = [TransformersTarget(model, prefill_chunk=CHUNK, exact=exact) for exact in (None, Exactness(model, True))]
    for context in CONTEXTS:
        text = text_of(context + max(WIDTHS))
        for target in targets:
            target.prefill(text[:context])
        for width in WIDTHS:
            chain = Draft.chain(text[context + 1 : context + width])
            tree = among_wrong(text[context + 1 : context + 1 + width // 2], as_tree=True)[0].select(range(width - 1))
            for kind, draft in (("chain", chain), ("tree", tree)) if width > 1 else (("plain", chain),):
                seconds: list[list[float]] = [[], []]
                for _ in range(turns):
                    for target, found in zip(targets, seconds, strict=True):
                        started = time.perf_counter()
                        target.score(text[context], draft).choose(0)
                        target.keep(())
                        found.append(time.perf_counter() - started)
                        target.rewind(context)
                without, exact = map(statistics.median, seconds)
                line = {"context": context, "rows": width, "kind": kind}
                yield line | {"ms": 1000 * without, "exact_ms": 1000 * exact, "share": exact / without}


def gained(dtype: str, rounds: int) -> Iterator[dict[str, Any]]:
    """What drafting gains with exactness and without."""
    questions = list(own_answers())
    for name in ("0.5B", "tiny"):
        model = half_billion(dtype) if name == "0.5B" else load_model("tiny", dtype, "cpu")
        speeds: dict[bool, float] = {}
        for exact in (False, True):
            measured = measure(
                MeasuredModel(model, asked_exact=exact),
                questions,
                choose_methods([OURS], False),
                Conditions(rounds=rounds),
            )
            label = f"{name}, exact {'on' if exact else 'off'}"
            rows = [row for found in track(measured, label, len(questions)) for row in found if row.method == OURS]
            speeds[exact] = statistics.geometric_mean(row.speed for row in rows)
            yield {"model": name, "exact": exact, "answers": len(rows), **per_step(rows), "speed": speeds[exact]}
        yield {"model": name, "exact": "of the gain without", "speed": speeds[True] / speeds[False]}


def per_step(rows: Sequence[Row]) -> dict[str, float]:
    """What a drafted step is on average."""
    steps = sum(row.steps for row in rows)
    return {"tokens": 1 + sum(row.accepted for row in rows) / steps, "rows": sum(row.rows for row in rows) / steps}


if __name__ == "__main__":
    run(main)
