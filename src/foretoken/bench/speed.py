"""Wall-clock speed on the bundled model: plain, ANPD, transformers' own generate and its prompt lookup, in turns."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import torch
from rich.progress import track

from foretoken.api.language_model import LanguageModel, load
from foretoken.core.stats import DecodeStats
from foretoken.engines.transformers.hook import generate
from foretoken.measure.check import check
from foretoken.measure.differences import TextChanged, first_difference, gap
from foretoken.measure.loops import loops

NEW_TOKENS = 200
DRAFTED = 7  # tokens a step, for ANPD and for transformers' prompt lookup
SEED = 0
TEMPERATURE = 0.8

# Method -> what is added to model.generate(...)
METHODS: dict[str, dict[str, Any]] = {
    "transformers": {},
    "transformers lookup": {"prompt_lookup_num_tokens": DRAFTED},
    "plain": {"custom_generate": generate, "drafter": "none"},
    "anpd": {"custom_generate": generate, "drafter": "anpd"},
}


@dataclass(frozen=True)
class Row:
    """One prompt under one decoding.

    Args:
        prompt: Its id.
        kind: What it is of.
        dtype: The model's.
        decoding: "greedy" or "sampled".
        tokens: Tokens of the plain answer.
        looped: Whether that answer fell into a loop.
        seconds: The median over the rounds, by method.
        acceptance_length: ANPD's tokens per step.
        differs_at: Position of ANPD's first token that is not plain decoding's; None where all agree.
        gap: By how much the best logit led the second there.
        as_transformers: Whether plain decoding gave the tokens of transformers' own generate; None under sampling,
            where they draw differently.
    """

    prompt: str
    kind: str
    dtype: str
    decoding: str
    tokens: int
    looped: bool
    seconds: dict[str, float]
    acceptance_length: float
    differs_at: int | None
    gap: float | None
    as_transformers: bool | None

    def ratio(self, slower: str, faster: str) -> float:
        """How many times as long one method took as another."""
        return self.seconds[slower] / self.seconds[faster]


def read_prompts() -> list[dict[str, str]]:
    """The 36 prompts that come with the benchmark, each with ``id``, ``kind`` and ``prompt``."""
    return [json.loads(line) for line in workload().splitlines()]


def workload() -> str:
    """The prompts as stored."""
    return (files("foretoken.bench") / "prompts.jsonl").read_text(encoding="utf-8")


def measure(model: str, dtypes: Sequence[str], rounds: int, device: str | None) -> dict[str, Any]:
    """Every prompt, greedy and sampled, in every dtype.

    Raises:
        TextChanged: If drafting changed a text: in float32 at all, in half precision by more than rounding explains.
    """
    rows: list[Row] = []
    noise = {}
    for dtype in dtypes:
        lm = load(model, dtype=dtype, device=device, history=False)
        noise[dtype] = check(lm, 64).noise or 0.0
        for prompt in track(read_prompts(), description=f"{dtype}: 36 prompts, methods in turns"):
            rows += [_measure_prompt(lm, prompt, dtype, decoding, rounds) for decoding in ("greedy", "sampled")]
    _fail_on_differences(rows, noise)
    return {"rows": [asdict(row) for row in rows], "noise": noise, "summary": list(summarise(rows))}


def _measure_prompt(lm: LanguageModel, prompt: Mapping[str, str], dtype: str, decoding: str, rounds: int) -> Row:
    ids = torch.tensor([lm.encode(prompt["prompt"])], device=lm.model.device)
    sampling = {"do_sample": decoding == "sampled"} | ({"temperature": TEMPERATURE} if decoding == "sampled" else {})
    # Under sampling transformers draws another text, of another length, so that its time says nothing about ours.
    methods = [name for name in METHODS if decoding == "greedy" or not name.startswith("transformers")]
    answers: dict[str, list[int]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    stats = DecodeStats()
    for _ in range(rounds):
        for name in methods:
            stats = DecodeStats() if name == "anpd" else stats
            extra = {"stats": stats} if name == "anpd" else {}
            torch.manual_seed(SEED)
            start = time.perf_counter()
            output = lm.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                **sampling,
                **METHODS[name],
                **extra,
            )
            seconds[name].append(time.perf_counter() - start)
            answers[name] = output[0, ids.shape[1] :].tolist()
    plain = answers["plain"]
    differs_at = first_difference(plain, answers["anpd"])
    return Row(
        prompt["id"],
        prompt["kind"],
        dtype,
        decoding,
        len(plain),
        loops(plain),
        {name: statistics.median(seconds[name]) for name in methods},
        stats.acceptance_length,
        differs_at,
        None if differs_at is None else gap(lm.model, [*ids[0].tolist(), *plain[:differs_at]]),
        None if decoding == "sampled" else plain == answers["transformers"],
    )


def _fail_on_differences(rows: Sequence[Row], noise: Mapping[str, float]) -> None:
    """Stop loudly where a text differs by more than rounding explains; under sampling the noise hides the gap."""
    wrong = [
        f"{row.prompt} ({row.dtype}, {row.decoding}): token {row.differs_at}, gap {row.gap}"
        for row in rows
        if row.differs_at is not None
        and (row.dtype == "float32" or (row.decoding == "greedy" and (row.gap or 0.0) > 2 * noise[row.dtype]))
    ]
    wrong += [f"{row.prompt} ({row.dtype}): plain is not transformers'" for row in rows if row.as_transformers is False]
    if wrong:
        raise TextChanged("Drafting changed the text:\n" + "\n".join(wrong))


def summarise(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """One line for each dtype, decoding and kind, outputs that loop apart."""
    groups = sorted({(row.dtype, row.decoding, row.looped, row.kind) for row in rows})
    for dtype, decoding, looped, kind in groups:
        group = [
            row for row in rows if (row.dtype, row.decoding, row.looped, row.kind) == (dtype, decoding, looped, kind)
        ]
        line: dict[str, Any] = {
            "dtype": dtype,
            "decoding": decoding,
            "looped": looped,
            "kind": kind,
            "prompts": len(group),
            "same_text": sum(row.differs_at is None for row in group),
            "acceptance_length": statistics.geometric_mean(row.acceptance_length for row in group),
            "anpd_over_plain": statistics.geometric_mean(row.ratio("plain", "anpd") for row in group),
        }
        if decoding == "greedy":
            line["plain_over_transformers"] = statistics.geometric_mean(
                row.ratio("transformers", "plain") for row in group
            )
            line["anpd_over_lookup"] = statistics.geometric_mean(
                row.ratio("transformers lookup", "anpd") for row in group
            )
        yield line
