"""Wall-clock gain where forwards cost what a real model's do: answers replayed over 0.5B random parameters."""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.progress import track
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from foretoken.api.language_model import load
from foretoken.bench.speed import NEW_TOKENS, read_prompts
from foretoken.core.budget import AdaptiveBudget
from foretoken.core.decode import decode
from foretoken.core.stats import DecodeStats
from foretoken.drafters import NgramMixer, SharedNgrams
from foretoken.engines.replay import ReplayTarget
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.measure.differences import TextChanged
from foretoken.ngrams.background import Background
from foretoken.replay.read import MIN_OUTPUT, Trace

MAX_PROMPT, MAX_OUTPUT = 512, 64  # tokens of a recorded answer's, so that a round takes seconds
LOOKUP = 10  # tokens that transformers' prompt lookup drafts


def measure(rounds: int, sets: Mapping[str, Sequence[Trace]], background: Background | None) -> dict[str, Any]:
    """Plain decoding, the n-gram core and transformers' prompt lookup in turns over a Qwen2-shaped 0.5B model.

    A record decides the tokens, and the model, whose weights are random, spends the time: its forwards cost the same
    whatever it reads. Transformers' own loop is given the record through a logits processor. No time has the prefill in
    it. Transformers drafts at the prefill too, and is spared that forward.

    Args:
        rounds: How often each answer is given; medians count.
        sets: Recorded answers by name; of each set the answers run in order, the n-gram core remembering them. Where
            there is none, answers that the bundled model samples at temperature 0.8.
        background: What the n-gram core also drafts from.

    Raises:
        TextChanged: If a method did not give the record.
    """
    model = qwen2_half_billion()
    engine = TransformersTarget(model)
    budget = AdaptiveBudget()
    rows: list[dict[str, Any]] = []
    for name, traces in track((sets or own_answers()).items(), description="replayed over 0.5B random weights"):
        plain, drafted, lookup = [0.0], [0.0], [0.0]
        stats = DecodeStats()
        memories = [SharedNgrams(background) for _ in range(rounds)]
        for trace in traces:
            prompt, record = trace.prompt.tolist()[-MAX_PROMPT:], trace.record.tolist()[:MAX_OUTPUT]
            ours, theirs, none = [], [], []
            for memory in memories:
                none.append(_decode_seconds(_replay(engine, None, budget, prompt, record)))
                run = _replay(engine, NgramMixer(memory), budget, prompt, record)
                memory.add(record)
                ours.append(_decode_seconds(run))
                theirs.append(_lookup_seconds(model, prompt, record))
            stats.tokens, stats.steps, stats.accepted = (
                stats.tokens + run.tokens,
                stats.steps + run.steps,
                stats.accepted + run.accepted,
            )
            plain.append(statistics.median(none))
            drafted.append(statistics.median(ours))
            lookup.append(statistics.median(theirs))
        gain = sum(plain) / sum(drafted)
        rows.append(
            {
                "set": name,
                "answers": len(traces),
                "tokens": stats.tokens,
                "acceptance_length": stats.acceptance_length,
                "gain": gain,
                "share": gain / stats.acceptance_length,
                "over_lookup": sum(lookup) / sum(drafted),
            }
        )
    return {
        "rows": rows,
        "gain": statistics.geometric_mean(row["gain"] for row in rows),
        "share": statistics.geometric_mean(row["share"] for row in rows),
        "least_share": min(row["share"] for row in rows),
        "over_lookup": statistics.geometric_mean(row["over_lookup"] for row in rows),
        "least_over_lookup": min(row["over_lookup"] for row in rows),
        "costs_ms": {size: 1000 * seconds for size, seconds in budget.costs.as_dict().items()},
    }


def own_answers() -> dict[str, list[Trace]]:
    """Two answers of the bundled model to prompts of each kind."""
    lm = load("tiny", dtype="float32", device="cpu", background=None, history=False)
    kinds: dict[str, list[Trace]] = {}
    for prompt in read_prompts():
        some = kinds.setdefault(prompt["kind"], [])
        if len(some) < 2:
            answer = lm.generate(prompt["prompt"], max_new_tokens=NEW_TOKENS // 2, temperature=0.8, seed=0).tokens
            if len(answer) >= MIN_OUTPUT:
                some.append(Trace(array("i", lm.encode(prompt["prompt"])), array("i", answer)))
    return {kind: some for kind, some in kinds.items() if some}


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
    engine: TransformersTarget, drafter: NgramMixer | None, budget: AdaptiveBudget, ids: list[int], record: list[int]
) -> DecodeStats:
    stats = DecodeStats()
    for step in decode(ReplayTarget(record, engine), drafter, ids, max_new_tokens=len(record), budget=budget):
        stats.add(step)
    return stats


def _decode_seconds(run: DecodeStats) -> float:
    """The time after the first token."""
    return run.seconds - run.prefill_seconds


class _Record(LogitsProcessor):
    """Leaves only the recorded token possible, and notes when the first was asked for: after the prefill."""

    def __init__(self, num_prompt: int, record: Sequence[int]) -> None:
        self.num_prompt, self.record = num_prompt, record
        self.first_asked: float | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.first_asked = self.first_asked or time.perf_counter()
        forced = torch.full_like(scores, -torch.inf)
        # Behind a wrong guess transformers asks on; what it is told there is thrown away.
        position = min(input_ids.shape[1] - self.num_prompt, len(self.record) - 1)
        forced[:, self.record[position]] = 0
        return forced  # type: ignore[return-value]


def _lookup_seconds(model: PreTrainedModel, prompt: list[int], record: list[int]) -> float:
    """Seconds that transformers' own prompt lookup takes for the record, after the first token."""
    ids = torch.tensor([prompt])
    processor = _Record(len(prompt), record)
    output: torch.Tensor = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=len(record),
        min_new_tokens=len(record),
        do_sample=False,
        prompt_lookup_num_tokens=LOOKUP,
        logits_processor=LogitsProcessorList([processor]),
    )
    ended = time.perf_counter()
    if output[0, len(prompt) :].tolist() != record:
        raise TextChanged("Transformers' prompt lookup did not give the record.")
    return ended - (processor.first_asked or ended)
