"""The model that is measured, and what may help to draft for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any, Protocol

from transformers import LogitsProcessorList, PreTrainedModel, TemperatureLogitsWarper

from foretoken.core.contracts import Helpers, Target
from foretoken.core.costs import CostCurve
from foretoken.core.errors import ForetokenError
from foretoken.core.sampling import Sampling
from foretoken.core.stats import DecodeStats
from foretoken.engines.base import FOUND, Engine, Exact
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.cost_key import cost_key
from foretoken.engines.transformers.exactness import Exactness
from foretoken.engines.transformers.helpers import TransformersHelpers
from foretoken.engines.transformers.positions import context_length
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.measure.transformers_loop import generate
from foretoken.memory.costs import costs_of
from foretoken.ngrams.background import Background


class Measured(Protocol):
    """What the methods are measured on."""

    @property
    def background(self) -> Background | None:
        """A corpus in the model's tokens."""
        ...

    @property
    def draft_model(self) -> Any:
        """A smaller model of the same tokens. None if there is none."""
        ...

    @property
    def dtype(self) -> str:
        """What the weights are kept in."""
        ...

    @property
    def exact(self) -> bool:
        """Whether drafted logits are plain decoding's in every bit."""
        ...

    @property
    def costs(self) -> CostCurve:
        """What the model's forwards cost on this machine."""
        ...

    @property
    def max_length(self) -> int | None:
        """The most tokens of prompt and answer together. None means no limit."""
        ...

    @property
    def stop_tokens(self) -> Collection[int]:
        """The tokens that end its answers."""
        ...

    @property
    def helpers(self) -> Helpers:
        """What may draft for it."""
        ...

    def target(self, temperature: float, seed: int) -> Target:
        """A target that chooses by these two alone."""
        ...


@dataclass(frozen=True)
class MeasuredEngine:
    """A model in the hands of any engine.

    Args:
        engine: What runs it.
        background: A corpus in the model's tokens.
    """

    engine: Engine
    background: Background | None = None
    draft_model: None = None

    @property
    def dtype(self) -> str:
        return self.engine.dtype

    @property
    def exact(self) -> bool:
        return self.engine.exact

    @property
    def costs(self) -> CostCurve:
        return costs_of(self.engine.cost_key, self.engine.target)

    @property
    def max_length(self) -> int | None:
        return self.engine.max_length

    @cached_property
    def stop_tokens(self) -> Collection[int]:
        return self.engine.prepare([0], Sampling(temperature=0.0), 1).stop_tokens

    @property
    def helpers(self) -> Helpers:
        return self.engine

    def target(self, temperature: float, seed: int) -> Target:
        return self.engine.target(temperature, seed)


@dataclass(frozen=True)
class MeasuredModel:
    """A model of transformers, which needs no tokenizer here.

    Args:
        model: In the dtype that is measured.
        background: A corpus in the model's tokens.
        draft_model: A smaller model of the same tokens.
        speculator: The folder of trained heads; "auto" for the one in the model's folder, if there is one; None for
            none.
        exact: Whether drafted logits must be plain decoding's in every bit; see ``foretoken.load``.

    Raises:
        ForetokenError: If the two models have not the same number of tokens.
    """

    model: PreTrainedModel
    background: Background | None = None
    draft_model: PreTrainedModel | None = None
    speculator: str | PathLike[str] | None = FOUND
    asked_exact: Exact = "auto"

    def __post_init__(self) -> None:
        if self.draft_model is not None and _vocabulary(self.draft_model) != _vocabulary(self.model):
            raise ForetokenError(
                f"The draft model has {_vocabulary(self.draft_model)} tokens and the model {_vocabulary(self.model)}: "
                "name one with the same tokenizer."
            )

    @property
    def dtype(self) -> str:
        """The name of the model's dtype."""
        return str(self.model.dtype).removeprefix("torch.")

    @cached_property
    def exactness(self) -> Exactness:
        """Whether its rows are kept apart.

        Raises:
            ForetokenError: If they must be and cannot.
        """
        return Exactness(self.model, self.asked_exact)

    @property
    def exact(self) -> bool:
        return bool(self.exactness.widths())

    @property
    def costs(self) -> CostCurve:
        key = cost_key(self.model, exact=self.exact)
        return costs_of(key, lambda: TransformersTarget(self.model, exact=self.exactness))

    @property
    def max_length(self) -> int | None:
        return context_length(self.model)

    @property
    def stop_tokens(self) -> list[int]:
        config = self.model.generation_config
        stop = None if config is None else config.eos_token_id
        return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)

    @property
    def helpers(self) -> TransformersHelpers:
        return TransformersHelpers(self.model, speculator=self.speculator)

    def target(self, temperature: float = 0.0, seed: int = 0) -> TransformersTarget:
        """The model with a cache of its own; nothing of its generation config applies."""
        choice = Choice()
        if temperature:
            choice = Choice(LogitsProcessorList([TemperatureLogitsWarper(temperature)]), seed)
        return TransformersTarget(self.model, choice, max_length=self.max_length, exact=self.exactness)

    def own_loop(
        self, prompt: Sequence[int], length: int, record: Sequence[int] | None, options: Mapping[str, Any]
    ) -> tuple[list[int], DecodeStats]:
        """An answer of transformers' own loop; see ``generate``."""
        return generate(self.model, prompt, length, self.stop_tokens if record is None else [], record, **options)


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)
