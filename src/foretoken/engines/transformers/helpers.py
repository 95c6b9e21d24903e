"""What drafts for a model of transformers: a smaller model, its own first layers, or heads trained on its states."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretoken.core.contracts import Heads, Helpers, Rescorer, RewindableTarget, Target
from foretoken.engines.base import FOUND
from foretoken.engines.transformers.exit import ExitTarget
from foretoken.engines.transformers.second_model import check_same_tokens, draft_target, load_draft_model
from foretoken.engines.transformers.speculator import RESCORER, find_speculator, trained_heads, trained_rescorer
from foretoken.engines.transformers.target import TransformersTarget


class TransformersHelpers(Helpers):
    """What a model of transformers has to help a drafter.

    Args:
        model: The larger model.
        tokenizer: Its tokenizer. If None, a draft model must be loaded already and have as many tokens.
        dtype: In which dtype a draft model that is named is loaded; see ``foretoken.load``.
        trust_remote_code: Whether a draft model's own code may run.
        speculator: The folder of trained heads; "auto" for the one in the model's folder, if there is one; None for
            none.

    Raises:
        ForetokenError: If the speculator's folder is not there.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        speculator: str | PathLike[str] | None = FOUND,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._dtype, self._trust_remote_code = dtype, trust_remote_code
        self._speculator = find_speculator(model.name_or_path or "", speculator)
        self._draft_models: dict[str, PreTrainedModel] = {}

    def draft_target(self, model: Any, target: Target) -> RewindableTarget:
        """A smaller model of the same tokens, by name or as an object, that chooses as ``target`` does.

        Raises:
            ForetokenError: If it cannot be loaded, cannot rewind, or has other tokens.
        """
        assert isinstance(target, TransformersTarget)
        tokenizer = self._tokenizer
        if tokenizer is None or isinstance(model, PreTrainedModel):  # sizes alone may differ within a family
            check_same_tokens(model, self._model, tokenizer, tokenizer)
            return draft_target(model, target.choice)
        if model not in self._draft_models:
            self._draft_models[model] = load_draft_model(
                model, self._model, tokenizer, self._dtype, self._trust_remote_code
            )
        return draft_target(self._draft_models[model], target.choice)

    def exit_target(self, layer: int | None, target: Target) -> RewindableTarget:
        """The first layers of the target's model, on its cache. If None, a third of them.

        Raises:
            ForetokenError: If there are not so many layers, or they cannot be reached.
        """
        assert isinstance(target, TransformersTarget)
        return ExitTarget(target, layer)

    @property
    def heads(self) -> Callable[[Target], Heads] | None:
        """Gives the trained heads of the model, set to the choice of a target. None if there are none.

        What it gives raises a ``ForetokenError`` if they cannot be read, or belong to another model.
        """
        folder = self._speculator
        if folder is None:
            return None

        def heads(target: Target) -> Heads:
            assert isinstance(target, TransformersTarget)
            return trained_heads(self._model, folder, target.choice)

        return heads

    @property
    def rescorer(self) -> Callable[[], Rescorer] | None:
        """Gives the language model in the folder of the heads. None if there is none.

        What it gives raises a ``ForetokenError`` if it cannot be read, or belongs to another model.
        """
        folder = None if self._speculator is None else self._speculator / RESCORER
        if folder is None or not folder.is_dir():
            return None
        return lambda: trained_rescorer(self._model, folder)
