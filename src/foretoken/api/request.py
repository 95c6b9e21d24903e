"""What transformers' generate prepares from a generation config, in the words of decode()."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from foretoken.core.errors import ForetokenError
from foretoken.engines.choice import Choice


@dataclass(frozen=True)
class Request:
    """One sequence to answer.

    Args:
        prompt: Token ids.
        max_new_tokens: The most tokens to add.
        choice: How tokens are chosen.
        stop_tokens: Tokens that end the answer.
        stop: Any other stopping criterion, asked after every token; None where there is none.
    """

    prompt: list[int]
    max_new_tokens: int
    choice: Choice
    stop_tokens: frozenset[int]
    stop: Callable[[Sequence[int]], bool] | None


def read_request(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    config: GenerationConfig,
    seed: int | None = None,
) -> Request:
    """What generate() hands to its decoding loop, in our words.

    Args:
        input_ids: The prompt, [1, length], padded on the left where ``attention_mask`` is 0.
        attention_mask: [1, length]; None for no padding.
        logits_processor: Every processor of the request, in transformers' order.
        stopping_criteria: Every criterion of the request.
        config: The prepared configuration.
        seed: Decides the choice under sampling; drawn from torch's generator where None.

    Raises:
        ForetokenError: If more than one sequence is asked for, or what our loop does not record.
    """
    refuse_unsupported(input_ids, config)
    prompt = input_ids[0] if attention_mask is None else input_ids[0][attention_mask[0].bool()]
    if not config.do_sample:
        seed = None
    elif seed is None:
        seed = int(torch.randint(2**63 - 1, ()))
    others = StoppingCriteriaList(
        criterion for criterion in stopping_criteria if not isinstance(criterion, EosTokenCriteria | MaxLengthCriteria)
    )
    return Request(
        prompt.tolist(),
        config.max_length - input_ids.shape[1],
        Choice(logits_processor or None, seed),
        _token_set(config.eos_token_id),
        _asked_with_ids(others, input_ids.device) if others else None,
    )


def refuse_unsupported(input_ids: Tensor, config: GenerationConfig) -> None:
    """Say what to do instead where a request is not one sequence, decoded token by token.

    Raises:
        ForetokenError: If so.
    """
    if config.num_beams > 1:
        raise ForetokenError(
            f"num_beams is {config.num_beams}, but beams are not drafted: set it to 1 or leave out custom_generate."
        )
    if input_ids.shape[0] > 1:
        raise ForetokenError(
            f"The batch has {input_ids.shape[0]} sequences: call generate for one at a time, or give a list of prompts "
            "to foretoken.load(...).generate, which answers one after the other."
        )
    recorded = [name for name in ("scores", "logits", "attentions", "hidden_states") if _asks(config, f"output_{name}")]
    if recorded and config.return_dict_in_generate:
        raise ForetokenError(
            f"output_{recorded[0]} is not recorded in drafted decoding: leave it out, or leave out custom_generate."
        )


def _asks(config: GenerationConfig, name: str) -> bool:
    return bool(getattr(config, name, False))


def _token_set(tokens: Any) -> frozenset[int]:
    """Stop tokens, which a config gives as a number, a list or nothing."""
    if tokens is None:
        return frozenset()
    return frozenset([tokens] if isinstance(tokens, int) else tokens)


def _asked_with_ids(criteria: StoppingCriteriaList, device: torch.device) -> Callable[[Sequence[int]], bool]:
    """The criteria as a question about all tokens so far."""

    def stop(context: Sequence[int]) -> bool:
        return bool(criteria(torch.tensor([context], device=device), None).any())

    return stop
