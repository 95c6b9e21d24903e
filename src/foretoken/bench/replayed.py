"""Wall-clock gain where forwards cost what a real model's do: answers replayed over 0.5B random parameters."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from rich.progress import track
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from foretoken.api.language_model import load
from foretoken.bench.speed import NEW_TOKENS, read_prompts
from foretoken.core.budget import FixedBudget
from foretoken.core.contracts import Drafter
from foretoken.core.decode import decode
from foretoken.core.stats import DecodeStats
from foretoken.drafters import AdaptiveNgram
from foretoken.engines.replay import ReplayTarget
from foretoken.engines.transformers import TransformersTarget
from foretoken.replay.read import MIN_OUTPUT


def measure(prompts_per_kind: int, rounds: int) -> dict[str, Any]:
    """Plain and drafted replay in turns over a Qwen2-shaped 0.5B model in bfloat16; prefill is left out of the gain.

    The answers are sampled from the bundled model at temperature 0.8. Their tokens mean nothing to the large model,
    which only spends the time: its forwards cost the same whatever it reads.
    """
    lm = load("tiny", dtype="float32", device="cpu")
    engine = TransformersTarget(qwen2_half_billion())
    kinds: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    for prompt in track(read_prompts(), description="replayed over 0.5B random weights"):
        ids = lm.encode(prompt["prompt"])
        record = lm.generate(prompt["prompt"], max_new_tokens=NEW_TOKENS // 2, temperature=0.8, seed=0).tokens
        kinds.setdefault(prompt["kind"], 0)
        if len(record) < MIN_OUTPUT or kinds[prompt["kind"]] == prompts_per_kind:
            continue
        kinds[prompt["kind"]] += 1
        plain, drafted = [], []
        for _ in range(rounds):
            plain.append(_replay(engine, None, ids, record))
            drafted.append(_replay(engine, AdaptiveNgram(), ids, record))
        rows.append(
            {
                "prompt": prompt["id"],
                "tokens": len(record),
                "plain_ms_per_step": 1000 * _decode_seconds(plain) / plain[0].steps,
                "drafted_ms_per_step": 1000 * _decode_seconds(drafted) / drafted[0].steps,
                "acceptance_length": drafted[0].acceptance_length,
                "gain": _decode_seconds(plain) / _decode_seconds(drafted),
            }
        )
    gain = statistics.geometric_mean(row["gain"] for row in rows)
    acceptance_length = statistics.geometric_mean(row["acceptance_length"] for row in rows)
    return {"rows": rows, "gain": gain, "acceptance_length": acceptance_length, "share": gain / acceptance_length}


def qwen2_half_billion() -> PreTrainedModel:
    """A random model of Qwen2-0.5B's shape, 494M parameters, in bfloat16."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    model: PreTrainedModel = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    return model


def _replay(
    engine: TransformersTarget, drafter: Drafter | None, ids: list[int], record: tuple[int, ...]
) -> DecodeStats:
    stats = DecodeStats()
    target = ReplayTarget(record, engine)
    for step in decode(target, drafter, ids, max_new_tokens=len(record), budget=FixedBudget(7)):
        stats.add(step)
    return stats


def _decode_seconds(runs: list[DecodeStats]) -> float:
    """The median time after the first token."""
    return statistics.median(run.seconds - run.prefill_seconds for run in runs)
