"""The target's answer to a draft: rows of logits. A row's token is chosen when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from foretoken.core.contracts import Scores, Top
from foretoken.core.draft import Draft
from foretoken.core.errors import LogitsError
from foretoken.engines.transformers.choice import Compared, argmax, top

if TYPE_CHECKING:
    from foretoken.engines.transformers.target import TransformersTarget


class TransformersScores(Scores):
    """Logits of a forward, [rows, vocab]; a row is processed when asked for, and once.

    Args:
        target: Whose they are.
        logits: [rows, vocab].
        draft: What the rows after the first one read.
        states: What the output head read, [rows, width]. None where nobody will ask.
    """

    def __init__(self, target: TransformersTarget, logits: Tensor, draft: Draft, states: Tensor | None = None) -> None:
        self.states = states
        # Transformers' own loop chooses from float32: where two logits are one number there, the first token wins.
        self.logits = logits.float() if logits.dtype == torch.float64 else logits
        self.choice, self.draft = target.choice, draft
        self.ids = target.ids  # [1, length], up to row 0; a view, taken now because keep makes it longer
        self._chosen: dict[int, int] = {}
        self._compared: dict[int, Compared] = {}  # of rows whose choice was not the logits' argmax

    @torch.inference_mode()
    def choose(self, row: int) -> int:
        if row not in self._chosen:
            if not self.choice.is_argmax:
                self._compared[row] = self.choice.compare(self._row_ids(row), self.logits[row])
                self._chosen[row] = self._compared[row].best
            elif self.logits.device.type == "cpu":
                self._chosen[row] = argmax(self.logits[row])
            else:  # all rows at once, since every answer of the device costs a wait
                tokens = self.logits.argmax(-1)
                unknown = self.logits.gather(-1, tokens[:, None])[:, 0].isnan()
                self._chosen = dict(enumerate(tokens.masked_fill(unknown, -1).tolist()))
        if self._chosen[row] < 0:
            raise LogitsError
        return self._chosen[row]

    @torch.inference_mode()
    def runner_up(self, row: int) -> tuple[int, float]:
        chosen = self.choose(row)  # where there are processors, they are asked there and once
        return self._compared.get(row, Compared(self.logits[row], chosen)).runner_up

    def top(self, rows: Sequence[int], k: int) -> Top:
        every = rows == range(len(self.logits))  # which need no copy
        return top(self.logits if every else self.logits[list(rows)], k)

    def hidden(self, rows: Sequence[int]) -> Tensor:
        if self.states is None:
            return cast(Tensor, super().hidden(rows))
        first = rows[0]
        return self.states[first : first + 1] if len(rows) == 1 else self.states[list(rows)]

    @torch.inference_mode()
    def logprobs(self, row: int) -> Any:
        return self.logits[row].float().log_softmax(-1).cpu().numpy()

    def row_logits(self, row: int) -> Any:
        """The logits after a row, float32 [vocab], an array of numpy."""
        return self.logits[row].float().cpu().numpy()

    def _row_ids(self, row: int) -> Tensor:
        """The token ids up to and with a row, [1, length]."""
        path = self.draft.path(row - 1)
        return torch.cat([self.ids, self.ids.new_tensor([path])], dim=1) if path else self.ids
