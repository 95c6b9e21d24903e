"""The n-gram core as the draft model of llama-cpp-python's own ``Llama``, for those who must keep that call.

``Llama`` chooses the tokens, and verifies chains alone, in its own way: its forwards are not filled up, so that drafts
can change a text where two logits nearly tie. ``foretoken.load("model.gguf")`` does better wherever it can be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretoken.core.contracts import Step
from foretoken.core.draft import Draft
from foretoken.core.errors import RequestError
from foretoken.drafters.ngram import NgramMixer
from foretoken.ngrams.shared import SharedNgrams

N_BATCH = 512  # the default of Llama


class NgramDraftModel:
    """Drafts for a ``Llama``: ``Llama(..., draft_model=NgramDraftModel(n_batch=512), n_batch=512)``.

    It has the one method of ``llama_cpp.llama_speculative.LlamaDraftModel``. Answers are remembered, and later ones are
    drafted from them.

    With a draft model, ``Llama`` keeps the logits of every token, in room for ``n_batch`` tokens. Beyond that it fails,
    unless it was made with ``logits_all=True``, which takes 4 bytes times the context times the vocabulary.

    Args:
        n_batch: As ``Llama`` has it. None if that was made with ``logits_all=True``.
        num_tokens: The most tokens of a draft.
        floor: The least probability of a chain up to its last token. More rows cost more time; see ``bench costs``.
        memory: What earlier answers left. If None, nothing.

    Raises:
        ForetokenError: If ``num_tokens`` is below 1.
    """

    def __init__(
        self,
        n_batch: int | None = N_BATCH,
        num_tokens: int = 10,
        floor: float = 0.3,
        memory: SharedNgrams | None = None,
    ) -> None:
        if num_tokens < 1:
            raise RequestError(f"num_tokens is {num_tokens}: give at least 1.")
        self._room, self._num_tokens, self._floor = n_batch, num_tokens, floor
        self.memory = memory or SharedNgrams()
        self._drafter = NgramMixer(self.memory, trees=False, floor=floor)
        self._context: list[int] = []
        self._num_prompt = 0
        self._drafter.begin([])

    def __call__(self, input_ids: NDArray[np.intc], /, **kwargs: Any) -> NDArray[np.intc]:
        """Guesses of what follows all tokens so far, int [n].

        Raises:
            ForetokenError: If ``Llama`` would fail in its next forward.
        """
        ids = input_ids.tolist()
        if self._room is not None and len(ids) > self._room:
            raise RequestError(
                f"A text of {len(ids)} tokens is more than a Llama with a draft model keeps logits for, {self._room}: "
                "make it with n_batch as large as the text, or with logits_all=True, and give n_batch=None here."
            )
        self._read(ids)
        most = self._num_tokens if self._room is None else min(self._num_tokens, self._room - len(ids))
        draft = self._drafter.propose(ids, most) if most > 0 else Draft()
        return np.array(draft.main_chain().tokens, np.intc)

    def _read(self, ids: Sequence[int]) -> None:
        """Go on from the last text if this one goes on from it; otherwise remember that and begin again."""
        num_known = len(self._context)
        if self._context and list(ids[:num_known]) == self._context:
            new = tuple(ids[num_known:])
            if new:
                self._drafter.observe(Step(Draft(), new))
        else:
            if len(self._context) > self._num_prompt:
                self.memory.add(self._context[self._num_prompt :])
            self._drafter.begin(ids)
            self._num_prompt = len(ids)
        self._context = list(ids)
