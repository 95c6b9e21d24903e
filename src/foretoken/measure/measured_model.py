"""The model that is measured, and what may help to draft for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from os import PathLike

from transformers import PreTrainedModel

from foretoken.core.costs import CostCurve
from foretoken.core.errors import ForetokenError
from foretoken.engines.base import FOUND, Exact
from foretoken.engines.transformers.cost_key import cost_key
from foretoken.engines.transformers.exactness import Exactness
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.memory.costs import costs_of
from foretoken.ngrams.background import Background


@dataclass(frozen=True)
class MeasuredModel:
    """A model, and the help that drafters may take.

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
    exact: Exact = "auto"

    def __post_init__(self) -> None:
        if self.draft_model is not None and _vocabulary(self.draft_model) != _vocabulary(self.model):
            raise ForetokenError(
                f"The draft model has {_vocabulary(self.draft_model)} tokens and the model {_vocabulary(self.model)}: "
                "name one with the same tokenizer."
            )

    @property
    def costs(self) -> CostCurve:
        """What the model's forwards cost on this machine."""
        key = cost_key(self.model, exact=bool(self.exactness.widths()))
        return costs_of(key, lambda: TransformersTarget(self.model, exact=self.exactness))

    @cached_property
    def exactness(self) -> Exactness:
        """Whether its rows are kept apart.

        Raises:
            ForetokenError: If they must be and cannot.
        """
        return Exactness(self.model, self.exact)

    @property
    def dtype(self) -> str:
        """The name of the model's dtype."""
        return str(self.model.dtype).removeprefix("torch.")


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)
