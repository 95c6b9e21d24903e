"""What transformers' generate prepares from a generation config, in the words of decode()."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from foretoken.core.contracts import Target
from foretoken.core.errors import RequestError
from foretoken.engines.base import Request
from foretoken.engines.transformers.choice import Choice, Processors
from foretoken.engines.transformers.processors import Padded
from foretoken.engines.transformers.target import PREFILL_CHUNK

ALIBI = ("bloom", "mpt")  # models that number no positions: they see how far back a token is


@dataclass(frozen=True)
class Prepared:
    """One sequence to answer, before there is a target.

    Args:
        prompt: Token ids.
        max_new_tokens: The most tokens to add.
        choice: How tokens are chosen.
        stop_tokens: Tokens that end the answer.
        stop: Any other stopping criterion, asked after every token. If None, there is none.
        num_padding: How many tokens of padding stood before the prompt.
        prefill_chunk: The most prompt tokens to read in one forward.
    """

    prompt: list[int]
    max_new_tokens: int
    choice: Choice
    stop_tokens: frozenset[int]
    stop: Callable[[Sequence[int]], bool] | None
    num_padding: int = 0
    prefill_chunk: int = PREFILL_CHUNK

    def on(self, target: Target) -> Request:
        """The request to a target that was made for it."""
        return Request(target, self.prompt, self.max_new_tokens, self.stop_tokens, self.stop)


def read_request(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    config: GenerationConfig,
    seed: int | None = None,
) -> Prepared:
    """What generate() hands to its decoding loop, in our words.

    Args:
        input_ids: The prompt, [1, length], padded on the left where ``attention_mask`` is 0.
        attention_mask: [1, length]. If None, nothing is padded.
        logits_processor: Every processor of the request, in transformers' order.
        stopping_criteria: Every criterion of the request.
        config: The prepared configuration.
        seed: Decides the choice under sampling. If None, it is drawn from torch's generator.

    Raises:
        ForetokenError: If more than one sequence is asked for, or what our loop does not record.
    """
    refuse_unsupported(input_ids, config)
    num_padding = _num_padding(input_ids, attention_mask, config)
    padding = input_ids[:, :num_padding]
    if not config.do_sample:
        seed = None
    elif seed is None:
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    # What the loop sees to itself is read from the criteria, not the config: a caller's own replace the config's.
    lengths = [criterion.max_length for criterion in stopping_criteria if isinstance(criterion, MaxLengthCriteria)]
    ends = [criterion.eos_token_id for criterion in stopping_criteria if isinstance(criterion, EosTokenCriteria)]
    others = StoppingCriteriaList(
        criterion for criterion in stopping_criteria if not isinstance(criterion, EosTokenCriteria | MaxLengthCriteria)
    )
    return Prepared(
        input_ids[0, num_padding:].tolist(),
        min([config.max_length, *lengths]) - input_ids.shape[1],
        Choice(_processors(logits_processor, padding) if logits_processor else None, seed),
        frozenset(token for tokens in ends for token in tokens.flatten().tolist()),
        _asked_with_ids(others, padding) if others else None,
        num_padding,
        config.prefill_chunk_size or PREFILL_CHUNK,
    )


def refuse_unsupported(input_ids: Tensor, config: GenerationConfig) -> None:
    """Say what to do instead where a request is not one sequence, decoded token by token on a cache that can rewind.

    Raises:
        ForetokenError: If so.
    """
    if config.num_beams > 1:
        raise RequestError(
            f"num_beams is {config.num_beams}, but beams are not drafted: set it to 1 or leave out custom_generate."
        )
    if input_ids.shape[0] > 1:
        raise RequestError(
            f"The batch has {input_ids.shape[0]} sequences: call generate for one at a time, or give a list of prompts "
            "to foretoken.load(...).generate, which answers one after the other."
        )
    outputs = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    recorded = [name for name in outputs if getattr(config, name, False)]
    if recorded and config.return_dict_in_generate:
        raise RequestError(
            f"{recorded[0]} is not recorded in drafted decoding: leave it out, or leave out custom_generate."
        )
    if config.use_cache is False:
        raise RequestError(
            "use_cache is False, and drafted decoding needs a cache: pass use_cache=True, or leave out custom_generate."
        )
    if config.cache_implementation not in (None, "dynamic"):
        raise RequestError(
            f"cache_implementation is {config.cache_implementation!r}, a cache that cannot drop rejected guesses: "
            "leave it out, or leave out custom_generate."
        )
    if config.is_assistant:
        raise RequestError("is_assistant is set, and drafted decoding is no assistant's: leave it out.")


def refuse_modes(
    model: PreTrainedModel, config: GenerationConfig, assistant_model: Any = None, synced_gpus: bool | None = None
) -> None:
    """Refuse what would be decoded otherwise than token by token: transformers' own drafting, DoLa, contrastive search.

    Raises:
        ForetokenError: If a generate() with these arguments would be.
    """
    mode = config.get_generation_mode(assistant_model)
    if mode == GenerationMode.ASSISTED_GENERATION:
        raise RequestError(
            "The arguments ask for transformers' own drafting (assistant_model, prompt_lookup_num_tokens, "
            "assistant_early_exit or use_mtp): leave them out and name a drafter, or leave out custom_generate."
        )
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise RequestError(
            f"The arguments ask for {mode.replace('_', ' ')}, which is not drafted: "
            "leave them out, or leave out custom_generate."
        )
    if _is_sharded(model) if synced_gpus is None else synced_gpus:
        raise RequestError(
            "Several processes would have to make the same number of forwards (synced_gpus), and drafted decoding "
            "makes as many as each answer needs: leave out custom_generate."
        )


def _is_sharded(model: PreTrainedModel) -> bool:
    """Whether several processes hold a part of each weight, so that all must make every forward together."""
    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    return several and (is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model))


def refuse_positions(position_ids: Tensor | None, request: Prepared) -> None:
    """Refuse positions that are not those of a text without gaps.

    Args:
        position_ids: [.., length], as generate() prepared them or the caller gave them; padding may have any.
        request: What they are for.

    Raises:
        ForetokenError: If a token would stand elsewhere.
    """
    if position_ids is None:
        return
    positions = position_ids[..., request.num_padding :]
    if not bool((positions == torch.arange(positions.shape[-1], device=positions.device)).all()):
        raise RequestError(
            "position_ids are not 0, 1, 2 .. for the tokens of the prompt, and drafted decoding knows no others: "
            "leave them out, or leave out custom_generate."
        )


def refuse_padding(model: PreTrainedModel, request: Prepared) -> None:
    """Refuse padding where it moves the tokens after it, so that their text depends on how much there is.

    Raises:
        ForetokenError: If the model numbers its positions by itself, as Bart's decoder does, and not for ALiBi, which
            knows distances only.
    """
    numbers_itself = "position_ids" not in inspect.signature(model.forward).parameters
    if request.num_padding and numbers_itself and model.config.model_type not in ALIBI:
        raise RequestError(
            f"The prompt is padded, and {type(model).__name__} counts padding as text: "
            "leave the padding out, or leave out custom_generate."
        )


def _num_padding(input_ids: Tensor, attention_mask: Tensor | None, config: GenerationConfig) -> int:
    """How many tokens of padding stand before the prompt.

    Raises:
        ForetokenError: If the mask is of other tokens, or hides some within or after the prompt.
    """
    num_masked = getattr(config, "_mask_length", None) if attention_mask is None else attention_mask.shape[1]
    if num_masked is not None and num_masked != input_ids.shape[1]:
        raise RequestError(
            f"The attention mask is of {num_masked} tokens and the prompt has {input_ids.shape[1]}: "
            "give the whole conversation, also what past_key_values holds already, and a mask as long."
        )
    if attention_mask is None:
        return 0
    hidden = attention_mask[0] == 0
    num_padding = int(hidden.sum())
    if not bool(hidden[:num_padding].all()):
        raise RequestError(
            "The attention mask hides tokens within or after the prompt, and drafted decoding knows padding on the "
            'left only: set padding_side="left", or leave these tokens out.'
        )
    return num_padding


def _processors(processors: LogitsProcessorList, padding: Tensor) -> Processors:
    return Padded(processors, padding) if padding.shape[1] else processors


def _asked_with_ids(criteria: StoppingCriteriaList, padding: Tensor) -> Callable[[Sequence[int]], bool]:
    """The criteria as a question about all tokens so far."""

    def stop(context: Sequence[int]) -> bool:
        ids = torch.cat([padding, padding.new_tensor([context])], dim=1)
        return bool(criteria(ids, None).any())

    return stop
