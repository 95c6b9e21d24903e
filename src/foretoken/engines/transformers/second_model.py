"""A smaller model that drafts: found, checked against the larger one, and set to choose as that does."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretoken.core.contracts import Scores
from foretoken.core.draft import Draft
from foretoken.core.errors import ModelError
from foretoken.engines.transformers.cache import rewindable_cache
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.loading import load_model, load_tokenizer
from foretoken.engines.transformers.positions import context_length
from foretoken.engines.transformers.processors import stateless
from foretoken.engines.transformers.recurrent import is_recurrent
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.memory.fingerprint import fingerprint


def load_draft_model(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model of this name as a draft model for ``model``, on the same device.

    Args:
        name: A folder, a name on the hub, or "tiny"; see ``foretoken.load``.
        model: The larger model.
        tokenizer: Its tokenizer.
        dtype: See ``foretoken.load``.
        trust_remote_code: See ``foretoken.load``.

    Raises:
        ForetokenError: If it cannot be loaded, cannot rewind, or has other tokens.
    """
    if not isinstance(name, str):
        raise ModelError(f"The draft model is {type(name).__name__}: give the name of a model.")
    draft_model = load_model(name, dtype, str(model.device), trust_remote_code)
    refuse_recurrent(draft_model)
    rewindable_cache(draft_model)
    check_same_tokens(draft_model, model, load_tokenizer(name, trust_remote_code), tokenizer)
    return draft_model


def check_same_tokens(
    draft_model: PreTrainedModel,
    model: PreTrainedModel,
    draft_tokenizer: PreTrainedTokenizerBase | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Refuse a draft model whose token ids mean something else than the larger model's.

    With the same tokenizer the models' sizes of vocabulary may differ, as sizes of one family do: it is padding then.

    Raises:
        ForetokenError: If the tokenizers differ, the draft model lacks some of the tokens, or, where a tokenizer is not
            known, the sizes differ.
    """
    if not isinstance(draft_model, PreTrainedModel):
        raise ModelError(f"The draft model is {draft_model!r}: give a model of transformers, or a name to load().")
    advice = "choose a smaller model of the same family, or another drafter."
    draft_size, size = _vocab_size(draft_model), _vocab_size(model)
    if draft_tokenizer is None or tokenizer is None:
        if draft_size != size:
            raise ModelError(f"The draft model has {draft_size} tokens and the model {size}: {advice}")
    elif draft_tokenizer is not tokenizer and fingerprint(draft_tokenizer) != fingerprint(tokenizer):
        raise ModelError(f"The draft model has another tokenizer than the model: {advice}")
    elif draft_size < len(tokenizer):
        raise ModelError(f"The draft model has {draft_size} tokens and the tokenizer {len(tokenizer)}: {advice}")


def draft_target(draft_model: PreTrainedModel, choice: Choice) -> TransformersTarget:
    """The draft model as a target for ``DraftModelDrafter``, which chooses as the larger one does.

    Args:
        draft_model: The smaller model.
        choice: The larger model's; its processors that may keep a state are left out.

    Raises:
        ForetokenError: If it keeps a recurrent state.
    """
    refuse_recurrent(draft_model)
    return DraftTarget(draft_model, stateless(choice), max_length=context_length(draft_model))


def refuse_recurrent(draft_model: PreTrainedModel) -> None:
    """Refuse a draft model that cannot go back to every earlier length.

    Raises:
        ForetokenError: If it keeps a recurrent state.
    """
    if is_recurrent(draft_model):
        raise ModelError(
            f"The draft model {type(draft_model).__name__} keeps a recurrent state, which goes back by one step and no "
            "further: choose one with attention in every layer, or another drafter."
        )


class DraftTarget(TransformersTarget):
    """Maps ids beyond the draft model's vocabulary (the target's may be padded further) to token 0."""

    def prefill(self, prompt: Sequence[int]) -> Scores:
        return super().prefill([self._known(token) for token in prompt])

    def score(self, last_token: int, draft: Draft) -> Scores:
        return super().score(self._known(last_token), draft)

    def _known(self, token: int) -> int:
        return token if token < self.vocab_size else 0


def _vocab_size(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)
