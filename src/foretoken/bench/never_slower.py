"""Never slower: drafting as it comes, against plain decoding, on text that gives a drafter nothing to work with."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.progress import track

from foretoken.api.drafting import Situation
from foretoken.api.language_model import LanguageModel, load
from foretoken.bench.speed import read_prompts
from foretoken.core.decode import decode
from foretoken.core.stats import DecodeStats
from foretoken.drafters import DEFAULT_DRAFTER
from foretoken.engines.replay import ReplayTarget
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.measure.differences import TextChanged

NEW_TOKENS = 256
MIN_TOKENS = 64  # of an answer, so that its time says something
TEMPERATURE = 1.2
SEED = 0
RANDOM_TEXTS = 4


def measure(
    dtypes: Sequence[str], rounds: int, records: Mapping[str, Sequence[str]], drafter: str = DEFAULT_DRAFTER
) -> list[dict[str, Any]]:
    """Answers sampled at 1.2, random tokens, and recorded texts, each plain and drafted in turns.

    Sampled answers are the bundled model's own; of random tokens and recorded texts the record chooses the tokens and
    the bundled model spends the time. The drafter has the background corpus and an adaptive budget, and remembers
    nothing from round to round but what forwards cost.

    Args:
        dtypes: Of the model.
        rounds: How often each is run; medians count.
        records: Texts by kind, replayed from their middle on.
        drafter: Its name.

    Raises:
        TextChanged: If drafting changed a text in float32.
    """
    rows = []
    for dtype in dtypes:
        lm = load("tiny", dtype=dtype, drafter=drafter, history=False)
        lm.memories.wait()
        texts: dict[str, list[list[int]]] = {"random": [_random_text(lm, seed) for seed in range(RANDOM_TEXTS)]}
        texts |= {kind: [lm.encode(text)[: 2 * NEW_TOKENS] for text in some] for kind, some in records.items()}
        runs: list[tuple[str, Callable[[bool], tuple[DecodeStats, tuple[int, ...]]]]] = [
            ("sampled at 1.2", lambda drafted, p=prompt["prompt"], lm=lm: _sampled(lm, p, drafted))  # type: ignore[misc]
            for prompt in read_prompts()[::2]
        ]
        runs += [
            (kind, lambda drafted, t=text, lm=lm: _replayed(lm, t, drafted))  # type: ignore[misc]
            for kind, some in texts.items()
            for text in some
        ]
        for kind, run in track(runs, description=f"{dtype}: texts without repetition, in turns"):
            pairs = [(run(False), run(True)) for _ in range(rounds)]
            (plain, text), (drafted, other) = pairs[0]
            if plain.tokens < MIN_TOKENS:
                continue
            if text != other and dtype == "float32":
                raise TextChanged(f"Drafting changed a text ({kind}, {dtype}).")
            rows.append(
                {
                    "dtype": dtype,
                    "kind": kind,
                    "tokens": plain.tokens,
                    "acceptance_length": drafted.acceptance_length,
                    "drafted_per_step": drafted.drafted / drafted.steps,
                    "same_text": text == other,
                    "speed": statistics.median(_per_token(p) for (p, _), _ in pairs)
                    / statistics.median(_per_token(d) for _, (d, _) in pairs),
                }
            )
    return rows


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each dtype and kind: the geometric mean of the speeds, and the least."""
    lines = []
    for dtype, kind in dict.fromkeys((row["dtype"], row["kind"]) for row in rows):
        own = [row for row in rows if (row["dtype"], row["kind"]) == (dtype, kind)]
        speeds = [row["speed"] for row in own]
        lines.append(
            {
                "dtype": dtype,
                "kind": kind,
                "texts": len(own),
                "same_text": sum(row["same_text"] for row in own),
                "acceptance_length": statistics.fmean(row["acceptance_length"] for row in own),
                "speed": statistics.geometric_mean(speeds),
                "least": min(speeds),
            }
        )
    return lines


def _sampled(lm: LanguageModel, prompt: str, drafted: bool) -> tuple[DecodeStats, tuple[int, ...]]:
    result = lm.generate(
        prompt,
        drafter=lm.drafter if drafted else "none",
        namespace=None,
        budget=lm.budget,
        max_new_tokens=NEW_TOKENS,
        temperature=TEMPERATURE,
        seed=SEED,
    )
    return result.stats, result.tokens


def _replayed(lm: LanguageModel, text: Sequence[int], drafted: bool) -> tuple[DecodeStats, tuple[int, ...]]:
    prompt, record = text[: len(text) // 2], text[len(text) // 2 :]
    engine = TransformersTarget(lm.model)
    situation = Situation(engine, lambda: lm.memories.of(None).ngrams)
    drafter, _ = situation.drafting(lm.drafter if drafted else "none")
    stats = DecodeStats()
    tokens: list[int] = []
    target = ReplayTarget(record, engine)
    for step in decode(target, drafter, prompt, max_new_tokens=len(record), budget=lm.budget):
        stats.add(step)
        tokens += step.tokens
    return stats, tuple(tokens)


def _random_text(lm: LanguageModel, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(len(lm.tokenizer)) for _ in range(2 * NEW_TOKENS)]


def _per_token(stats: DecodeStats) -> float:
    """Seconds a token after the first, whose time is the prefill's."""
    return (stats.seconds - stats.prefill_seconds) / (stats.tokens - 1)
