"""What a step costs beside the model's forward: our loop, our choice of tokens and the drafter.

A small random model of the bundled one's shape spends the forwards, which are timed apart and subtracted. The text is
made to be half predictable, and its tokens come from a record.

    python -m benchmarks.overhead

Prints for two sizes of the vocabulary the milliseconds of a step within the forward and beside it, at 2,000 tokens of
context.
"""

from __future__ import annotations

import random
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.common import RESULTS, Out, finish, run
from foretoken.core.decode import decode
from foretoken.core.stats import DecodeStats
from foretoken.drafters import AdaptiveNgram
from foretoken.engines.replay import ReplayTarget
from foretoken.engines.transformers.target import TransformersTarget

CONTEXT = 2000
NEW_TOKENS = 400


def main(out: Out = RESULTS / "overhead.json") -> None:
    """Time what a step costs beside the forward."""
    rows = measure()
    finish(out, {"rows": rows}, rows)


def measure(vocab_sizes: tuple[int, ...] = (4096, 151_936)) -> list[dict[str, Any]]:
    """Milliseconds per step outside the model's forward, by vocabulary size."""
    rows = []
    for vocab_size in vocab_sizes:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
        )
        target = _TimedTarget(LlamaForCausalLM(config).eval())
        text = half_predictable(CONTEXT + NEW_TOKENS)
        stats = DecodeStats()
        for step in decode(
            ReplayTarget(text[CONTEXT:], target), AdaptiveNgram(), text[:CONTEXT], max_new_tokens=NEW_TOKENS
        ):
            stats.add(step)
            if stats.steps == 0:
                target.forward_seconds = 0.0  # the prefill is not a step
        outside = stats.seconds - stats.prefill_seconds - target.forward_seconds
        rows.append(
            {
                "vocab_size": vocab_size,
                "context": CONTEXT,
                "steps": stats.steps,
                "acceptance_length": stats.acceptance_length,
                "forward_ms": 1000 * target.forward_seconds / stats.steps,
                "overhead_ms": 1000 * outside / stats.steps,
            }
        )
    return rows


def half_predictable(length: int) -> list[int]:
    """A text that often says again what it said before."""
    rng = random.Random(0)
    text = [rng.randrange(4000) for _ in range(50)]
    while len(text) < length:
        start = rng.randrange(len(text) - 12)
        text += [*text[start : start + rng.randint(4, 12)], rng.randrange(4000)]
    return text[:length]


class _TimedTarget(TransformersTarget):
    """Counts the seconds inside the model."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.forward_seconds = 0.0

    def _forward(
        self, input_ids: torch.Tensor, model: PreTrainedModel | None = None, **extra: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        start = time.perf_counter()
        outputs = super()._forward(input_ids, model, **extra)
        self.forward_seconds += time.perf_counter() - start
        return outputs


if __name__ == "__main__":
    run(main)
