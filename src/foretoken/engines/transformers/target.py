"""Driven: our loop over any decoder-only model of transformers whose cache can rewind."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, PreTrainedModel

from foretoken.core.contracts import Need, Scores
from foretoken.core.draft import Draft
from foretoken.core.errors import RequestError
from foretoken.engines.transformers.attention import is_causal_over_rows
from foretoken.engines.transformers.cache import KVCache, Mark
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.inputs import input_device, refuse_own_inputs
from foretoken.engines.transformers.positions import Positions
from foretoken.engines.transformers.quantized import rows_share_a_scale
from foretoken.engines.transformers.recurrent import RecurrentCache, cache_of
from foretoken.engines.transformers.row_attention import Rows, row_by_row, row_paths
from foretoken.engines.transformers.scans import scans_of_drafts
from foretoken.engines.transformers.scores import TransformersScores
from foretoken.engines.transformers.states import output_head, reading
from foretoken.engines.transformers.tree_mask import tree_mask
from foretoken.memory.prefixes import BLOCK, Kept, Prefix

PREFILL_CHUNK = 4096  # tokens
MOST_REREAD = 16  # tokens, beyond which nothing is drafted until they are read for good


class Widths(Protocol):
    """Tells how many rows a forward may have if a row's bits are not to depend on it."""

    def widths(self) -> tuple[int, ...]:
        """These numbers, rising; none where rows are not kept apart."""
        ...


class TransformersTarget:
    """A causal language model, its cache, and one sequence.

    Args:
        model: Any ``AutoModelForCausalLM`` model with an attention cache.
        choice: How tokens are chosen; greedy by default.
        cache: A cache to go on with, whose tokens begin the prompt. If None, every prompt gets a new one.
        max_length: The most tokens of prompt and answer together. If None, there is no limit.
        prefill_chunk: The most prompt tokens read in one forward, to bound memory on long prompts.
        exact: Keeps a row's bits from depending on the rows beside it. If None, they may.

    Raises:
        ForetokenError: If the model is no causal language model or its cache cannot rewind.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        choice: Choice | None = None,
        *,
        cache: Cache | KVCache | None = None,
        max_length: int | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        exact: Widths | None = None,
    ) -> None:
        self.cache = cache if isinstance(cache, KVCache) else cache_of(model, cache)
        refuse_own_inputs(model)
        self.model, self.choice = model, choice or Choice()
        self.device = input_device(model)
        self.max_length, self.prefill_chunk = max_length, prefill_chunk
        # With one thread a forward runs in the caller's alone, whose time other threads and programs do not disturb.
        runs_here = self.device.type == "cpu" and torch.get_num_threads() == 1
        self.clock: Callable[[], float] = time.thread_time if runs_here else time.perf_counter
        self.vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
        self._positions = Positions(model)
        self._several_rows = scans_of_drafts(model) if isinstance(self.cache, RecurrentCache) else model
        self._one_row = not is_causal_over_rows(model) or rows_share_a_scale(model) or self._several_rows is None
        self.supports_trees = self._positions.windows is not None and self.cache.takes_trees and not self._one_row
        # Attention takes a mask of float32 with any query; where weights are of several types, a query may be of each.
        dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
        self._mask_dtype = model.dtype if len(dtypes) == 1 else torch.float32
        takes_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last_row_only: dict[str, Any] = {"logits_to_keep": 1} if takes_rows else {}
        self._head = output_head(model)
        self._exact, self._rows = exact, Rows(model)
        self._widths: tuple[int, ...] = ()  # of forwards in which a row's bits are its own; none if nobody asks for it
        self._prefix: Prefix | None = None  # where the first blocks of a prompt are kept
        self._reads_states = False  # whether the scores will be asked for what the output head reads
        self._draft: Draft | None = None  # what the last score added to the cache, until keep
        self._mark = Mark(0, {})  # where the cache was before it

    @property
    def provides(self) -> frozenset[Need]:
        known: frozenset[Need] = frozenset({"top", "runner_up", "logprobs", "row_logits"})
        return known if self._head is None else known | {"hidden"}

    @property
    def num_reread(self) -> int | None:
        """How many committed tokens the next forward reads again, before the last one.

        None if a rejection costs nothing later; see ``Target``.
        """
        return self.ids.shape[1] - self.num_cached if self.cache.rereads else None

    @property
    def max_draft_depth(self) -> int | None:
        num_tokens = self.ids.shape[1] + 1  # with the last token, which the next score brings
        if (self.num_reread or 0) >= MOST_REREAD:  # without a draft nothing is rejected, so that all of them are read
            return 0
        if self._one_row or self._positions.must_reread(self.num_cached, num_tokens):
            return 0
        depth = self._positions.max_draft_depth(num_tokens)
        if self._widths and self.cache.slides:  # the rows of an earlier forward might have left the window
            return self._widths[-1] - 1 if depth is None else min(self._widths[-1] - 1, depth)
        return depth

    @property
    def ids(self) -> Tensor:
        """The committed token ids, [1, length]."""
        return self.cache.ids

    @property
    def num_cached(self) -> int:
        """How many tokens the cache holds."""
        return self.cache.num_cached

    def expect(self, needs: frozenset[Need]) -> None:
        self._reads_states = "hidden" in needs

    def reuse(self, prefix: Prefix) -> None:
        """Read prompts in blocks from now on, from those on that are kept, if the model can."""
        if self.cache.has_blocks and self._reads_in_chunks:
            self._prefix = prefix

    @property
    def _reads_in_chunks(self) -> bool:
        """Whether a prompt may be read in several forwards.

        Where frequencies depend on a forward's longest position, chunks would mix them; and an attention function that
        is given no mask may be wrong over several rows on top of others.
        """
        return not self._positions.depend_on_length and not self._one_row

    @torch.inference_mode()
    def prefill(self, prompt: Sequence[int]) -> Scores:
        self._draft = None
        self._widths = () if self._exact is None else self._exact.widths()
        self.cache.begin(prompt)
        if self._positions.must_reread(self.num_cached, len(prompt)):
            self.cache.clear()
        start = self.num_cached
        if start >= len(prompt):
            raise RequestError(
                f"The cache already holds {start} tokens and the prompt has {len(prompt)}: "
                "give the whole conversation with at least one new token, or a new cache."
            )
        chunk = self.prefill_chunk if self._reads_in_chunks else len(prompt)
        blocks: list[Kept | None] = []
        mark = self.cache.mark()
        try:
            if self._prefix is not None:
                found, chunk = self._prefix.find(prompt), BLOCK
                self.cache.fill(found)
                blocks, start = [None] * len(found), BLOCK * len(found)
            while True:
                end = min(start + chunk, len(prompt))
                logits, states = self._forward(self.ids[:, start:end], **self._last_row_only)
                if self._prefix is not None and end - start == BLOCK:
                    blocks.append(self.cache.block(start, end))
                if end == len(prompt):
                    break
                start = end
                self.cache.drop_out_of_window()
        except BaseException:
            self.cache.go_back(mark)
            raise
        self.cache.check_holds(len(prompt), mark)
        if self._prefix is not None:
            self._prefix.keep(prompt, blocks)
        self.cache.drop_out_of_window()
        return TransformersScores(self, logits[-1:], Draft(), None if states is None else states[-1:])

    @torch.inference_mode()
    def score(self, last_token: int, draft: Draft) -> Scores:
        if self._draft is not None:
            raise RuntimeError("keep must follow score")
        # A token that the model does not have, as a damaged corpus may name, is never right, whatever stands for it.
        tokens = [token if 0 <= token < self.vocab_size else 0 for token in draft.tokens]
        input_ids = torch.tensor([[last_token, *tokens]], device=self.device)
        length = self.ids.shape[1]
        if self._positions.must_reread(self.num_cached, length + 1):
            self.cache.clear()
        if self.num_cached < length:
            input_ids = torch.cat([self.ids[:, self.num_cached :], input_ids], dim=1)
        self._mark = self.cache.mark(input_ids.shape[1])
        try:
            logits, states = self._forward_over(input_ids, draft)
            self.cache.check_holds(length + 1 + len(draft), self._mark)
            self.cache.append([last_token])
        except BaseException:  # layers that were reached have grown
            self.cache.go_back(self._mark)
            raise
        self._draft = draft
        rows = slice(-1 - len(draft), None)
        return TransformersScores(self, logits[rows], draft, None if states is None else states[rows])

    @torch.inference_mode()
    def keep(self, path: Sequence[int]) -> None:
        if self._draft is None:  # after prefill, when all is kept
            return
        try:
            self.cache.keep(path, self._draft.tokens)
        except BaseException:
            self.go_back(self._mark)
            raise
        self._draft = None

    def go_back(self, mark: Mark) -> None:
        """Leave in the cache what it held at a mark; what was scored and not kept goes too."""
        self.cache.go_back(mark)
        self._draft = None

    def rewind(self, num_tokens: int) -> None:
        """Leave only the first ``num_tokens`` tokens in the cache; what was scored and not kept goes too.

        Raises:
            ForetokenError: If the cache was given and has sliding layers, which do not keep what left their window.
        """
        self.cache.rewind(num_tokens)
        self._draft = None

    def _forward_over(self, input_ids: Tensor, draft: Draft) -> tuple[Tensor, Tensor | None]:
        """What ``_forward`` gives for the last token and a draft, or for the whole text, which is then read again."""
        num_rows = input_ids.shape[1]
        if not self._widths or num_rows > 1 + len(draft):
            extra = {} if draft.is_chain else self._tree_arguments(draft, self.ids.shape[1])
            return self._forward(input_ids, self._scoring(num_rows), **extra)
        parts, paths, most = [], row_paths(draft), self._widths[-1]
        for first in range(0, num_rows, most):
            ids = input_ids[:, first : first + most]
            count = ids.shape[1]
            width = next(width for width in self._widths if width >= count)
            self._rows.begin(paths, first, width)
            depths = [len(path) - 1 for path in self._rows.answered]
            depths += [depths[-1]] * (width - count)  # what fills up must stand where the model has a place
            positions = torch.tensor([depths], device=ids.device) + self.ids.shape[1]
            with row_by_row(self._rows):
                filled = pad(ids, (0, width - count)) if width > count else ids
                logits, states = self._forward(filled, position_ids=positions)
            if width > count:
                self.cache.drop_last(width - count)
            parts.append((logits[:count], None if states is None else states[:count]))
        if len(parts) == 1:
            return parts[0]
        all_logits, all_states = zip(*parts, strict=True)
        return torch.cat(all_logits), None if all_states[0] is None else torch.cat(all_states)

    @torch.inference_mode()
    def catch_up(self) -> None:
        """Let the cache hold every committed token but the last, also those that the next score would read again."""
        left = self.ids[:, self.num_cached :]
        if left.shape[1]:
            self._forward(left, self._scoring(left.shape[1]))

    def _scoring(self, num_rows: int) -> PreTrainedModel:
        """The model that reads so many rows after the prompt."""
        return self.model if num_rows == 1 or self._several_rows is None else self._several_rows

    def _forward(
        self, input_ids: Tensor, model: PreTrainedModel | None = None, **extra: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of the rows, [rows, vocab], and their states if they will be asked for; the cache grows by the rows.

        The states are what the output head read, [rows, width].

        Args:
            input_ids: [1, rows].
            model: Which has scans for drafts. If None, the one that reads prompts and single rows.
            **extra: Further arguments of its forward.
        """
        if self._positions.are_taken and "position_ids" not in extra:
            start = self.num_cached
            extra["position_ids"] = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)[None]
        model = model or self.model
        extra |= {self.cache.argument: self.cache.states, "use_cache": True, "return_dict": True}
        if self._head is None or not self._reads_states:
            logits, states = model(input_ids=input_ids, **extra).logits[0], None
        else:
            with reading(self._head) as read:
                logits = model(input_ids=input_ids, **extra).logits[0]
            states = read[-1][0]
        self.cache.has_read(input_ids.shape[1])
        return logits, states

    def _tree_arguments(self, draft: Draft, num_cached: int) -> dict[str, Any]:
        """The mask, one per kind of layer where there are several, and the positions."""
        windows = self._positions.windows
        assert windows is not None, "decode makes a chain where trees are not supported"
        made = {
            kind: tree_mask(draft, num_cached, window, self._mask_dtype, self.device)
            for kind, window in windows.items()
        }
        masks = {kind: mask for kind, (mask, _) in made.items()}
        positions = next(iter(made.values()))[1]
        return {"attention_mask": next(iter(masks.values())) if len(masks) == 1 else masks, "position_ids": positions}
