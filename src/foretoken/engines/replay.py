"""Driven: a recorded answer plays the target, alone or over a real model that spends the real time."""

from __future__ import annotations

from collections.abc import Sequence

from foretoken.core.contracts import Need, Scores, Target, Top, reread_by
from foretoken.core.draft import Draft


class ReplayTarget:
    """Chooses the recorded token at every position, so any drafter is judged on an answer that was given before.

    For a greedy record and a drafter that sees only tokens the acceptance is exactly what it would be on the model that
    gave the answer.

    Args:
        record: The tokens of the answer. Decode at most as many.
        engine: A target that is run alongside, to spend the time of its forwards and choices; its tokens are ignored.
    """

    max_length = None

    def __init__(self, record: Sequence[int], engine: Target | None = None) -> None:
        self.record, self.engine = record, engine
        self.position = 0  # of the record's token that row 0 of the next scores chooses
        self.supports_trees = engine is None or engine.supports_trees

    @property
    def provides(self) -> frozenset[Need]:
        """The likeliest tokens, if there is an engine: they belong to another text, and cost what they cost."""
        return self.engine.provides & {"top"} if self.engine else frozenset()

    @property
    def max_draft_depth(self) -> int | None:
        return self.engine.max_draft_depth if self.engine else None

    @property
    def num_reread(self) -> int | None:
        return reread_by(self.engine) if self.engine else None

    def prefill(self, prompt: Sequence[int]) -> Scores:
        self.position = 0
        return ReplayScores(self, Draft(), self.engine.prefill(prompt) if self.engine else None)

    def score(self, last_token: int, draft: Draft) -> Scores:
        self.position += 1
        return ReplayScores(self, draft, self.engine.score(last_token, draft) if self.engine else None)

    def keep(self, path: Sequence[int]) -> None:
        self.position += len(path)
        if self.engine:
            self.engine.keep(path)


class ReplayScores(Scores):
    """The record's token at a row's depth: right on the accepted path, and never asked elsewhere."""

    def __init__(self, target: ReplayTarget, draft: Draft, real: Scores | None) -> None:
        self.record, self.start, self.draft, self.real = target.record, target.position, draft, real

    def choose(self, row: int) -> int:
        if self.real is not None:
            self.real.choose(row)  # the model's own choice costs time too
        return self.record[self.start + (self.draft.depths[row - 1] if row else 0)]

    def top(self, rows: Sequence[int], k: int) -> Top:
        return super().top(rows, k) if self.real is None else self.real.top(rows, k)
