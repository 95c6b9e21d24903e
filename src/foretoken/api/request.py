"""What transformers' generate prepares from a generation config, in the words of decode()."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from foretoken.core.errors import ForetokenError
from foretoken.engines.choice import Choice, Processors
from foretoken.engines.processors import Padded


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
    kept = torch.ones_like(input_ids[0]) if attention_mask is None else attention_mask[0]
    padding = input_ids[:, kept == 0]
    if not config.do_sample:
        seed = None
    elif seed is None:
        seed = int(torch.randint(2**63 - 1, ()))
    # What the loop sees to itself is read from the criteria, not the config: a caller's own replace the config's.
    lengths = [criterion.max_length for criterion in stopping_criteria if isinstance(criterion, MaxLengthCriteria)]
    ends = [criterion.eos_token_id for criterion in stopping_criteria if isinstance(criterion, EosTokenCriteria)]
    others = StoppingCriteriaList(
        criterion for criterion in stopping_criteria if not isinstance(criterion, EosTokenCriteria | MaxLengthCriteria)
    )
    return Request(
        input_ids[0, kept != 0].tolist(),
        min([config.max_length, *lengths]) - input_ids.shape[1],
        Choice(_processors(logits_processor, padding) if logits_processor else None, seed),
        frozenset(token for tokens in ends for token in tokens.flatten().tolist()),
        _asked_with_ids(others, padding) if others else None,
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


def _processors(processors: LogitsProcessorList, padding: Tensor) -> Processors:
    return Padded(processors, padding) if padding.shape[1] else processors


def _asked_with_ids(criteria: StoppingCriteriaList, padding: Tensor) -> Callable[[Sequence[int]], bool]:
    """The criteria as a question about all tokens so far."""

    def stop(context: Sequence[int]) -> bool:
        ids = torch.cat([padding, padding.new_tensor([context])], dim=1)
        return bool(criteria(ids, None).any())

    return stop
