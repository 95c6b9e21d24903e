"""Models of Hugging Face transformers as an engine."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from typing import Any

import torch
import transformers as tf

from foretoken.core.decode import check_request
from foretoken.core.errors import ForetokenError, RequestError
from foretoken.core.sampling import Sampling
from foretoken.engines.base import FOUND, NOTHING, Engine, Exact, Request
from foretoken.engines.stop_strings import StopStrings
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.cost_key import cost_key
from foretoken.engines.transformers.exactness import Exactness
from foretoken.engines.transformers.generation_config import (
    apply_sampling,
    check_generation_config,
    config_stop_strings,
    without_stop_strings,
)
from foretoken.engines.transformers.helpers import TransformersHelpers
from foretoken.engines.transformers.inputs import input_device
from foretoken.engines.transformers.loading import load_model, load_tokenizer, reason
from foretoken.engines.transformers.positions import context_length
from foretoken.engines.transformers.processors import CountPenalties
from foretoken.engines.transformers.request import Prepared, read_request, refuse_modes
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.engines.transformers.threads import settle_threads
from foretoken.engines.transformers.tokens import TransformersTokens
from foretoken.memory.self_tests import SelfTest


class TransformersEngine(TransformersTokens, TransformersHelpers):
    """A causal language model whose cache can rewind, and its tokenizer.

    Args:
        model: The model; it is set to ``eval()``.
        tokenizer: Its tokenizer.
        dtype: In which dtype a draft model that is named is loaded; see ``foretoken.load``.
        trust_remote_code: Whether a draft model's own code may run.
        speculator: The folder of trained heads; see ``foretoken.load``.
        exact: Whether drafted logits must be plain decoding's in every bit; see ``foretoken.load``.

    Raises:
        ForetokenError: If the model is no causal language model, its cache cannot rewind, it cannot be exact where
            that was asked for, or the speculator's folder is not there.
    """

    name = "transformers"
    honours = frozenset(field.name for field in fields(Sampling))
    own_options = frozenset({"generation_config"})

    def __init__(
        self,
        model: tf.PreTrainedModel,
        tokenizer: tf.PreTrainedTokenizerBase,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        speculator: str | PathLike[str] | None = FOUND,
        exact: Exact = "auto",
    ) -> None:
        TransformersTokens.__init__(self, tokenizer)
        TransformersHelpers.__init__(self, model, tokenizer, dtype, trust_remote_code, speculator)
        self.model, self.max_length = model.eval(), context_length(model)
        TransformersTarget(self.model)  # refuses what cannot rewind, before any prompt
        self.exactness = Exactness(self.model, exact)

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.get_text_config(decoder=True).vocab_size)

    @property
    def dtype(self) -> str:
        """The name of the model's dtype, such as "float32"."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def cost_key(self) -> str:
        """The model's shape, dtype and attention, the device, the threads, and the versions of the libraries."""
        return cost_key(self.model, self.exact)

    @property
    def exact(self) -> bool:
        return bool(self.exactness.widths())

    def with_exact(self, exact: Exact) -> TransformersEngine:
        other = copy.copy(self)
        other.exactness = Exactness(self.model, exact)
        return other

    @property
    def self_test(self) -> SelfTest:
        """What the self-test of exactness finds with the threads of now."""
        return self.exactness.self_test

    def grammar_tokenizer(self) -> Any:
        from llguidance.hf import from_tokenizer

        end = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        if end is None:
            raise RequestError("A grammar or schema needs a model with a token that ends an answer: leave it out.")
        try:
            return from_tokenizer(self.tokenizer, self.vocab_size, end)  # type: ignore[arg-type]  # it checks
        except ValueError as error:
            raise RequestError("A grammar or schema needs a fast tokenizer of transformers: leave it out.") from error

    def settle_threads(self) -> None:
        settle_threads(self.model)

    def target(self, temperature: float = 0.0, seed: int = 0) -> TransformersTarget:
        choice = Choice()
        if temperature:
            choice = Choice(tf.LogitsProcessorList([tf.TemperatureLogitsWarper(temperature)]), seed)
        return TransformersTarget(self.model, choice, max_length=self.max_length, exact=self.exactness)

    def prepare(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        max_new_tokens: int | None = None,
        own: Mapping[str, Any] = NOTHING,
    ) -> Request:
        """The request that transformers' own preparation makes of a prompt, a sampling and a generation config.

        See ``Engine``. ``own`` may have a ``generation_config``, which is used instead of the model's own.
        """
        given: tf.GenerationConfig | None = own.get("generation_config")
        config = given or self.model.generation_config
        check_generation_config(config, self.vocab_size)
        stops = config_stop_strings(config, self.model.generation_config)
        config = without_stop_strings(config)
        if given is None:  # models are saved without it after training, and no text depends on it
            config.use_cache = True
        apply_sampling(config, sampling, max_new_tokens)
        check_request(len(prompt), config.max_new_tokens or 1, self.max_length)
        prepared = self._as_transformers_prepares(prompt, sampling, config)
        stop = StopStrings(stops, self, prompt, prepared.stop) if stops else prepared.stop
        target = TransformersTarget(
            self.model,
            prepared.choice,
            max_length=self.max_length,
            prefill_chunk=prepared.prefill_chunk,
            exact=self.exactness,
        )
        return replace(prepared.on(target), stop=stop)

    def _as_transformers_prepares(
        self, prompt: Sequence[int], sampling: Sampling, config: tf.GenerationConfig
    ) -> Prepared:
        """What transformers' generate makes of a config: every processor and criterion, in its own order."""

        def capture(
            model: tf.PreTrainedModel,
            input_ids: torch.Tensor,
            logits_processor: tf.LogitsProcessorList,
            stopping_criteria: tf.StoppingCriteriaList,
            generation_config: tf.GenerationConfig,
            **model_kwargs: Any,
        ) -> Prepared:
            prepared = read_request(
                input_ids, None, logits_processor, stopping_criteria, generation_config, sampling.seed
            )
            refuse_modes(model, generation_config)
            return prepared

        processors = tf.LogitsProcessorList(sampling.processors)
        if sampling.presence_penalty or sampling.frequency_penalty:
            penalties = sampling.presence_penalty or 0.0, sampling.frequency_penalty or 0.0
            processors.insert(0, CountPenalties(*penalties, len(prompt)))
        ids = torch.tensor([list(prompt)], device=input_device(self.model))
        try:
            prepared: Prepared = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                logits_processor=processors,
                custom_generate=capture,
            )
        except ForetokenError:
            raise
        except Exception as error:  # transformers' own checks of the config, and what is unfit for them, of any kind
            raise RequestError(f"The generation config cannot be used: {reason(error)}") from error
        return prepared


def load(
    name: str,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    speculator: str | PathLike[str] | None = FOUND,
    exact: Exact = "auto",
) -> Engine:
    """The model of a folder in the Hugging Face layout or of the hub, or "tiny"; see ``foretoken.load``.

    Raises:
        ForetokenError: If it cannot be loaded.
    """
    model = load_model(name, dtype, device, trust_remote_code)
    tokenizer = load_tokenizer(name, trust_remote_code)
    return TransformersEngine(model, tokenizer, dtype, trust_remote_code, speculator, exact)
