"""How tokens are chosen: one plain record for every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from foretoken.core.errors import RequestError
from foretoken.core.numbers import real, whole

RANGES: dict[str, tuple[Callable[[str, Any], float], Callable[[float], bool], str]] = {
    "temperature": (real, lambda x: x >= 0, "use 0 for greedy or a number above it"),
    "top_k": (whole, lambda x: x >= 0, "use 0 for all tokens or a number above it"),
    "top_p": (real, lambda x: 0 < x <= 1, "use a number above 0 and at most 1"),
    "min_p": (real, lambda x: 0 <= x <= 1, "use a number from 0 to 1"),
    "repetition_penalty": (real, lambda x: x > 0, "use a number above 0, 1 for none"),
    "presence_penalty": (real, lambda x: True, ""),
    "frequency_penalty": (real, lambda x: True, ""),
    "seed": (whole, lambda x: True, ""),
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """The settings of a choice. None leaves a setting to the model's own defaults.

    Args:
        temperature: 0 is greedy; above 0 samples.
        top_k: Sample from the k most probable tokens; 0 for all.
        top_p: Sample from the most probable tokens that make up this probability, in (0, 1].
        min_p: Drop tokens less probable than this share of the best one, in [0, 1].
        repetition_penalty: Above 1 makes tokens of the prompt and the answer less likely; above 0.
        presence_penalty: Subtracted from the logit of every token that the answer holds.
        frequency_penalty: Subtracted from a token's logit for each time that the answer holds it.
        seed: Decides the text under sampling. If None, the engine draws one.
        processors: Further changes of the logits, in order, called as the engine's library calls its own.

    Raises:
        ForetokenError: If a setting is not a number, or out of its range.

    >>> Sampling(temperature=0.8, top_p=0.9).samples, Sampling(temperature=0).samples, Sampling().samples
    (True, False, None)
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    processors: tuple[Callable[..., Any], ...] = ()

    def __post_init__(self) -> None:
        for name, (number, holds, advice) in RANGES.items():
            given = getattr(self, name)
            if given is None:
                continue
            value = number(name, given)
            if not holds(value):
                raise RequestError(f"{name} is {given}: {advice}.")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "processors", tuple(self.processors or ()))

    @property
    def samples(self) -> bool | None:
        """Whether tokens are drawn rather than the best one taken. None leaves it to the model's own defaults."""
        if self.temperature is not None:
            return self.temperature > 0
        return True if any(value is not None for value in (self.top_k, self.top_p, self.min_p)) else None

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are not left to the model."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) not in (None, ())}
