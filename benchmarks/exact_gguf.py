"""Is drafted text of GGUF files plain decoding's to the last bit? Counted over types, attention and threads.

    nice -n 19 python -m benchmarks.exact_gguf tiny-q8_0.gguf tiny-q4_k_m.gguf --rows 10000

Random tokens are continued plainly and drafted, greedily and sampled: with the plain answer known, as chains and among
wrong guesses, and with drafters that guess. The texts have 9 to 2,000 tokens. Every committed row is compared by every
bit of its logits. The control is the same file whose forwards are not filled up. The exit status is 1 if a row differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

from benchmarks.common import RESULTS, SEED, Out, finish, run
from foretoken.core.budget import FixedBudget
from foretoken.core.contracts import Drafter
from foretoken.core.decode import decode
from foretoken.core.sampling import Sampling
from foretoken.drafters import AdaptiveNgram
from foretoken.engines.llama_cpp.choice import Choice
from foretoken.engines.llama_cpp.engine import LlamaCppEngine
from foretoken.engines.llama_cpp.target import EVERY_WIDTH, LlamaCppTarget
from foretoken.measure.check import RecordedTree
from foretoken.measure.differences import TextChanged

CONTEXT, LENGTH = 2064, 120  # tokens
PROMPTS = (9, 200, 700, 1900)  # tokens; with an answer the second grows beyond 256, the last beyond 2,000
CHAINS, TREES = (2, 6, 11, 31), (6, 30, 62)  # guesses


def main(
    files: Annotated[list[Path], typer.Argument(help="GGUF files.")],
    rows: Annotated[int, typer.Option(min=1, help="Committed rows to compare, of each file and way.")] = 10_000,
    threads: Annotated[list[int] | None, typer.Option(help="That forwards are computed with (repeatable).")] = None,
    out: Out = RESULTS / "exact_gguf.json",
) -> None:
    """Count the logits that drafting changes."""
    lines: list[dict[str, Any]] = []
    for path in files:
        for number in threads or [1, 2]:
            for flash in (True, False):
                engine = LlamaCppEngine(path, CONTEXT, number, flash=flash, exact=True)
                lines.append(measure(engine, path.name, flash, rows))
    finish(out, {"lines": lines}, lines)
    if any(line["differing"] for line in lines):
        raise TextChanged("Logits of drafted rows are not those of plain decoding.")


def measure(engine: LlamaCppEngine, name: str, flash: bool, rows: int) -> dict[str, Any]:
    """A file with one kind of attention and a number of threads, compared row by row."""
    widths = engine.self_test.widths
    found: dict[str, Any] = {"file": name, "threads": engine.threads, "flash": flash}
    found |= {
        "widths": f"{widths[0]}, {widths[1]}, ..",
        "rows": 0,
        "differing": 0,
        "control": 0,
        "control_differing": 0,
    }
    answers = -(-rows // (LENGTH * (len(CHAINS) + (len(TREES) if flash else 0) + 1)))
    for seed in track(range(answers), f"{name}, {engine.threads} threads, flash {flash}"):
        rng = np.random.default_rng(seed)
        prompt = rng.integers(0, engine.vocab_size, PROMPTS[seed % len(PROMPTS)]).tolist()
        target = engine.target()
        target.choice = Choice(Sampling(0.8 if seed % 2 else 0.0, seed=SEED))
        count, differing = compared(target, prompt, engine.vocab_size)
        found["rows"] += count
        found["differing"] += differing
        if seed < 2:
            target.widths = EVERY_WIDTH
            count, differing = compared(target, prompt, engine.vocab_size)
            found["control"] += count
            found["control_differing"] += differing
    return found


def compared(target: LlamaCppTarget, prompt: Sequence[int], vocab_size: int) -> tuple[int, int]:
    """How many rows of drafted answers were compared with the plain one's, and how many differ."""
    plain = answer(target, None, prompt, 0)
    text = [*prompt, *(token for token, _ in plain)]
    kinds: list[tuple[Drafter, int]] = [(RecordedTree(text, vocab_size, False), size) for size in CHAINS]
    if target.supports_trees:
        kinds += [(RecordedTree(text, vocab_size, True), size) for size in TREES]
    count = differing = 0
    for drafter, budget in [*kinds, (AdaptiveNgram(), 7)]:
        drafted = answer(target, drafter, prompt, budget)
        count += len(plain)
        # After a token that differs there is another text, whose rows count as differing.
        differing += sum(one != other for one, other in zip(plain, drafted, strict=True))
    return count, differing


def answer(
    target: LlamaCppTarget, drafter: Drafter | None, prompt: Sequence[int], budget: int
) -> list[tuple[int, bytes]]:
    """Each token, and the bits of the logits that it was chosen from."""
    found = []
    for step in decode(target, drafter, prompt, max_new_tokens=LENGTH, budget=FixedBudget(budget)):
        assert step.scores is not None
        for token, node in zip(step.tokens, (-1, *step.path), strict=True):
            found.append((token, np.asarray(step.scores.row_logits(node + 1)).tobytes()))
    return found


if __name__ == "__main__":
    run(main)
