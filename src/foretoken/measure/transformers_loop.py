"""Transformers' own generate, plain or with its prompt lookup, measured as our methods are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from foretoken.core.stats import DecodeStats


def generate(
    model: PreTrainedModel,
    prompt: Sequence[int],
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    record: Sequence[int] | None = None,
    **options: Any,
) -> tuple[list[int], DecodeStats]:
    """Answer greedily with ``model.generate`` and count its forwards.

    Args:
        model: What answers; nothing of its own ``generation_config`` applies.
        prompt: The tokens of the prompt.
        max_new_tokens: Length of the answer at most.
        stop_tokens: The tokens that end an answer.
        record: The tokens that the answer must have, at least ``max_new_tokens`` of them. If None, the model chooses.
        **options: Of ``GenerationConfig``, such as ``prompt_lookup_num_tokens=10``.

    Returns:
        The tokens of the answer and its counts. The first forward, which reads the prompt, is the prefill and no step.
        Transformers drafts for it too, and the guesses that it checks and accepts there are counted with the others.
    """
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_tokens) or None,
        pad_token_id=0,
        **options,
    )
    ids = torch.tensor([list(prompt)], device=model.device)
    processors = LogitsProcessorList([] if record is None else [_Recorded(len(prompt), record)])
    started = time.perf_counter()
    with _configured(model, config), _forwards(model) as forwards:
        output: torch.Tensor = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), generation_config=config, logits_processor=processors
        )
    seconds = time.perf_counter() - started
    tokens: list[int] = output[0, len(prompt) :].tolist()
    (prefilled, first_rows), *steps = forwards
    return tokens, DecodeStats(
        tokens=len(tokens),
        steps=len(steps),
        drafted=first_rows - len(prompt) + sum(rows - 1 for _, rows in steps),
        accepted=len(tokens) - 1 - len(steps),
        prefill_seconds=prefilled - started,
        seconds=seconds,
    )


class _Recorded(LogitsProcessor):
    """Leaves only the recorded token possible."""

    def __init__(self, num_prompt: int, record: Sequence[int]) -> None:
        self.num_prompt, self.record = num_prompt, record

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # Behind a wrong guess transformers asks on; what it is told there is thrown away.
        position = min(input_ids.shape[1] - self.num_prompt, len(self.record) - 1)
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.record[position]] = 0
        return forced  # type: ignore[return-value]


@contextmanager
def _configured(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Let ``config`` be the model's own: generate fills in from there what a config leaves open."""
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before


@contextmanager
def _forwards(model: PreTrainedModel) -> Iterator[list[tuple[float, int]]]:
    """When each forward ended, and how many rows it had."""
    found: list[tuple[float, int]] = []

    def note(module: object, args: object, kwargs: dict[str, Any], output: object) -> None:
        found.append((time.perf_counter(), kwargs["input_ids"].shape[1]))

    handle = model.register_forward_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()
