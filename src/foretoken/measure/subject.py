"""The model that is measured, wherever it comes from, and what may help to draft for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from foretoken.core.costs import CostCurve
from foretoken.core.errors import ForetokenError
from foretoken.engines.transformers.cost_key import cost_key
from foretoken.engines.transformers.loading import DTYPES, load_model, load_tokenizer
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.measure.small_models import load_small
from foretoken.memory.costs import costs_of
from foretoken.ngrams.background import Background

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Subject:
    """A model, and the help that drafters may take.

    Args:
        model: In the dtype that is measured.
        encode: Makes tokens of a prompt.
        background: A corpus in the model's tokens.
        draft_model: A smaller model of the same tokens.

    Raises:
        ForetokenError: If the two models have not the same number of tokens.
    """

    model: PreTrainedModel
    encode: Encode
    background: Background | None = None
    draft_model: PreTrainedModel | None = None

    def __post_init__(self) -> None:
        if self.draft_model is not None and _vocabulary(self.draft_model) != _vocabulary(self.model):
            raise ForetokenError(
                f"The draft model has {_vocabulary(self.draft_model)} tokens and the model {_vocabulary(self.model)}: "
                "name one with the same tokenizer."
            )

    @property
    def costs(self) -> CostCurve:
        """What the model's forwards cost on this machine."""
        return costs_of(cost_key(self.model), lambda: TransformersTarget(self.model))

    @property
    def dtype(self) -> str:
        """The name of the model's dtype."""
        return str(self.model.dtype).removeprefix("torch.")


def load_measured(name: str, dtype: str, device: str | None = None) -> tuple[PreTrainedModel, Encode]:
    """A model and what makes its tokens: as ``foretoken.load`` finds it, or a small one of ``load_small``.

    Raises:
        ForetokenError: If there is no such model.
    """
    if not is_small(name):
        model, tokenizer = load_model(name, dtype, device), load_tokenizer(name)
        return model, lambda text: list(tokenizer(text)["input_ids"])
    if not isinstance(DTYPES.get(dtype), torch.dtype):
        raise ForetokenError(f"The model {name!r} is stored in no dtype of torch's: name one instead of {dtype!r}.")
    small: Any  # transformers wraps ``to`` so that types do not see it
    small, pieces = load_small(Path(os.path.expanduser(name)))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return small.to(dtype=DTYPES[dtype], device=device), pieces.encode


def is_small(name: str) -> bool:
    """Whether a name is a file or a folder of weights as ``load_small`` reads them."""
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return any(path.glob("*.npz")) or (any(path.glob("*.bin")) and not (path / "config.json").is_file())
    return path.suffix in (".bin", ".npz")


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)
