"""Generation configs: check the types of their values, which transformers does not, and write a sampling into one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from foretoken.core.errors import ModelError
from foretoken.core.sampling import Sampling
from foretoken.engines.base import DEFAULT_NEW_TOKENS
from foretoken.engines.stop_strings import read_stop_strings


def check_generation_config(config: GenerationConfig, vocab_size: int) -> None:
    """Refuse values of a wrong type, and tokens that the model does not have, where something would come of them.

    Stop strings are not looked at here: ``read_stop_strings`` checks them.

    Args:
        config: A model's own, or a caller's; values that are None are not given.
        vocab_size: How many tokens the model has.

    Raises:
        ForetokenError: At the first.
    """
    for kind, holds, names in KINDS:
        for name in names.split():
            value = getattr(config, name, None)
            if value is not None and not holds(value):
                raise ModelError(f"The generation config has {name} = {value!r}: make it {kind}.")
    for name in ("bad_words_ids", "sequence_bias", "forced_bos_token_id", "forced_eos_token_id"):
        unknown = [token for token in _tokens(getattr(config, name, None)) if not 0 <= token < vocab_size]
        if unknown:
            raise ModelError(
                f"The generation config has token {unknown[0]} in {name}, and the model has {vocab_size}: leave it out."
            )


def apply_sampling(config: GenerationConfig, sampling: Sampling, max_new_tokens: int | None) -> None:
    """Write a sampling and a limit into a generation config, whose own values stay where they say nothing.

    Seed, penalties by presence and frequency, and further processors have no place in it.
    """
    if max_new_tokens is not None:
        config.max_new_tokens = max_new_tokens
    elif config.max_new_tokens is None and config.max_length is None:
        config.max_new_tokens = DEFAULT_NEW_TOKENS
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        if (value := getattr(sampling, name)) is not None:
            setattr(config, name, value)
    if sampling.samples is not None:
        config.do_sample = sampling.samples
    if not config.do_sample:
        config.temperature = config.top_k = config.top_p = config.min_p = None


def config_stop_strings(config: GenerationConfig, of_model: GenerationConfig) -> list[str]:
    """The stop strings of a request's config; the model's own where it has none, as transformers' generate has it.

    Raises:
        ForetokenError: As ``read_stop_strings``.
    """
    given = config.stop_strings if config.stop_strings is not None else of_model.stop_strings
    return read_stop_strings("stop_strings of the generation config", given)


class _StopStringsAside(GenerationConfig):
    """A config without stop strings, whatever is written there."""

    @property
    def stop_strings(self) -> None:
        return None

    @stop_strings.setter
    def stop_strings(self, strings: Any) -> None:
        pass


def without_stop_strings(config: GenerationConfig) -> GenerationConfig:
    """A copy whose stop strings are ``StopStrings``' affair alone.

    Transformers' generate fills what is None from the model's own config, and then refuses stop strings, because it
    hands a ``custom_generate`` no tokenizer.
    """
    aside = _StopStringsAside()  # type: ignore[no-untyped-call]
    aside.__dict__.update(copy.deepcopy(config.__dict__))
    return aside


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_tokens(value: Any) -> bool:
    several = isinstance(value, list | tuple) and all(map(_is_whole, value))
    return several or _is_whole(value) or isinstance(value, Tensor)


def _tokens(value: Any) -> Iterator[int]:
    """The whole numbers in a value, however deep; of pairs, a sequence and its bias, those of the sequence."""
    if _is_whole(value):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for item in value:
            yield from _tokens(item[0] if _is_biased(item) else item)


def _is_biased(item: Any) -> bool:
    return isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], list | tuple)


KINDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("true or false", _is_flag, "do_sample use_cache renormalize_logits remove_invalid_values return_dict_in_generate"),
    (
        "a number",
        _is_number,
        "temperature top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty guidance_scale max_time",
    ),
    (
        "a whole number",
        _is_whole,
        "max_length max_new_tokens min_length min_new_tokens top_k no_repeat_ngram_size num_beams num_return_sequences",
    ),
    ("a token or a list of tokens", _is_tokens, "eos_token_id forced_bos_token_id forced_eos_token_id suppress_tokens"),
)
