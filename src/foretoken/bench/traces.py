"""Acceptance on recorded answers of real models, without any model: what a drafter gains, exactly."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretoken.core.budget import FixedBudget
from foretoken.core.contracts import Drafter
from foretoken.core.decode import decode
from foretoken.core.stats import DecodeStats
from foretoken.engines.replay import ReplayTarget

MIN_OUTPUT = 16  # shorter answers are passed over
MAX_OUTPUT = 400
MAX_PROMPT = 6000  # the last tokens of a prompt are kept

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Trace:
    """A prompt and the answer that a model gave, in tokens."""

    prompt: list[int]
    record: list[int]


def read_traces(path: Path, encode: Encode, limit: int) -> Iterator[Trace]:
    """The first ``limit`` traces of a file of JSON lines with ``prompt``, a string or messages, and ``output``."""
    count = 0
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if count == limit:
                return
            row = json.loads(line)
            record = list(encode(row["output"]))[:MAX_OUTPUT]
            if len(record) >= MIN_OUTPUT:
                yield Trace(list(encode(prompt_text(row["prompt"])))[-MAX_PROMPT:], record)
                count += 1


def prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt as one text; messages become ``role: content`` lines."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def replay(traces: Sequence[Trace], drafter: Drafter, budget: int) -> DecodeStats:
    """Counts over all traces; the first token of each answer comes from the prefill."""
    total = DecodeStats()
    for trace in traces:
        stats = DecodeStats()
        target = ReplayTarget(trace.record)
        for step in decode(target, drafter, trace.prompt, max_new_tokens=len(trace.record), budget=FixedBudget(budget)):
            stats.add(step)
        total.tokens += stats.tokens
        total.steps += stats.steps
        total.drafted += stats.drafted
        total.accepted += stats.accepted
        total.seconds += stats.seconds
    return total
