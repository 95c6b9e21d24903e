"""What the n-gram core itself costs, without any model: time and memory at short and at long contexts.

    python -m benchmarks.latency

Prints for contexts of 1,000, 8,000 and 128,000 tokens the seconds that a prompt takes, the microseconds of a draft of
ten nodes, as a chain and as a tree, of learning from a committed token and of appending one, and the bytes of a token;
and the milliseconds of a draft for each of 256 sequences. Medians over steps of two tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, Out, finish, run
from benchmarks.recorded import background_for
from foretoken.core.contracts import Step
from foretoken.core.draft import Draft
from foretoken.drafters import NgramMixer, SharedNgrams
from foretoken.ngrams.background import Background
from foretoken.ngrams.store import TokenStore

CONTEXTS = (1_000, 8_000, 128_000)
DRAFTED = 10
STEPS = 300
BATCH, BATCH_CONTEXT = 256, 8_000
SEED = 0


def main(out: Out = RESULTS / "latency.json") -> None:
    """Time what the n-gram core itself costs."""
    rows = measure(background_for("tiny"))
    finish(out, {"rows": rows}, rows)


def measure(background: Background | None) -> list[dict[str, Any]]:
    """Medians over steps of two tokens each, on text that repeats itself as code and chat do."""
    rows = []
    for length in CONTEXTS:
        text = zipf_text(length + 2 * STEPS)
        row: dict[str, Any] = {"context": length}
        for trees in (False, True):
            # With no floor every draft has as many nodes as it may.
            drafter = NgramMixer(SharedNgrams(background), trees=trees, floor=0.0)
            row["ingest_s"] = _seconds(partial(drafter.begin, text[:length]))
            draft_us, observe_us, nodes = [], [], []
            for start in range(length, length + 2 * STEPS, 2):
                context = text[:start]
                began = time.perf_counter()
                draft = drafter.propose(context, DRAFTED)
                drafted = time.perf_counter()
                drafter.observe(Step(draft, tuple(text[start : start + 2])))
                draft_us.append(1e6 * (drafted - began))
                observe_us.append(1e6 * (time.perf_counter() - drafted) / 2)
                nodes.append(len(draft))
            shape = "tree" if trees else "chain"
            row[f"{shape}_us"] = statistics.median(draft_us)
            row[f"{shape}_nodes"] = statistics.median(nodes)
            row["observe_us_per_token"] = statistics.median(observe_us)
        row |= _store(text[:length])
        rows.append(row)
    rows.append({"context": BATCH_CONTEXT, "batch": BATCH, "batch_ms": _batch_ms(background)})
    return rows


def zipf_text(length: int) -> list[int]:
    """Tokens of which few are frequent, half of them in copies of earlier spans."""
    rng = np.random.default_rng(SEED)
    fresh = np.minimum(rng.zipf(1.3, length), 50_000).tolist()
    text: list[int] = fresh[:64]
    while len(text) < length:
        start, size = int(rng.integers(0, len(text) - 32)), int(rng.integers(4, 32))
        text += text[start : start + size]
        text += fresh[len(text) : len(text) + size]
    return text[:length]


def _store(text: list[int]) -> dict[str, float]:
    """Microseconds to append a token and bytes that it takes, in the store alone."""
    store = TokenStore(len(text))
    tokens = np.array(text, np.int32)
    seconds = _seconds(lambda: store.extend(tokens))
    return {"append_us": 1e6 * seconds / len(text), "bytes_per_token": store.nbytes / len(text)}


def _batch_ms(background: Background | None) -> float:
    """Milliseconds to draft once for each of many sequences, one after the other."""
    memory = SharedNgrams(background)
    text = zipf_text(BATCH_CONTEXT + 16 * BATCH)
    drafters = [NgramMixer(memory) for _ in range(BATCH)]
    contexts = [text[16 * i : 16 * i + BATCH_CONTEXT] for i in range(BATCH)]
    for drafter, context in zip(drafters, contexts, strict=True):
        drafter.begin(context)

    def draft_all() -> list[Draft]:
        return [drafter.propose(context, DRAFTED) for drafter, context in zip(drafters, contexts, strict=True)]

    return 1000 * statistics.median(_seconds(draft_all) for _ in range(9))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    run(main)
