"""What the parts ask of each other: Drafter, Target, Scores, and the Step they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from foretoken.core.draft import Draft
from foretoken.core.law import Law

FinishReason = Literal["stop", "length"]


class Top(NamedTuple):
    """The tokens of the largest logits after some rows, best first, and their probabilities before any processor.

    Args:
        tokens: [rows][k].
        probs: [rows][k], of the softmax over the vocabulary at temperature 1.
    """

    tokens: list[list[int]]
    probs: list[list[float]]


class Scores(Protocol):
    """The target's answer to a draft: row 0 follows the last committed token, row i + 1 follows node i.

    A row costs nothing until it is asked for, and the loop asks only along the accepted path, so that logits processors
    see the very calls that plain decoding makes; ``top`` asks none. Scores hold until the next ``score``.
    """

    def choose(self, row: int) -> int:
        """The target's own token after ``row``: the argmax, or what the seed selects at this position."""
        ...

    def runner_up(self, row: int) -> tuple[int, float]:
        """The token that came second in the choice after ``row``, and by how much it lost.

        That is the difference of what the choice is the argmax of: the processed logits, or under sampling their sums
        with the seed's noise. It is infinite where no other token could be chosen.
        """
        ...

    def law(self, row: int) -> Law:
        """The distribution after ``row`` that tokens are chosen from, all processors applied."""
        ...

    def top(self, rows: Sequence[int], k: int) -> Top:
        """What the logits after some rows, also rejected ones, name as the likeliest ``k`` >= 1 tokens."""
        ...


class Target(Protocol):
    """A language model with a rewindable cache, one sequence at a time."""

    @property
    def supports_trees(self) -> bool:
        """Whether ``score`` takes drafts with branches and lookahead rows; a chain is made of them otherwise."""
        ...

    @property
    def max_length(self) -> int | None:
        """Most tokens of prompt and answer together; None for no limit."""
        ...

    @property
    def max_draft_depth(self) -> int | None:
        """How deep the next draft may be for its rows to be scored as plain decoding would; None for no limit."""
        ...

    def prefill(self, prompt: Sequence[int]) -> Scores:
        """Read the prompt, at least one token; the scores of its last token are row 0."""
        ...

    def score(self, last_token: int, draft: Draft) -> Scores:
        """One forward over the last committed token, which the cache does not hold yet, and every node of the draft."""
        ...

    def keep(self, path: Sequence[int]) -> None:
        """Leave in the cache the last scored token and these nodes, root first, and drop the other nodes."""
        ...


class RewindableTarget(Target, Protocol):
    """A target that can also go back to any earlier length: what a drafter runs."""

    @property
    def num_cached(self) -> int:
        """How many tokens the cache holds."""
        ...

    def rewind(self, num_tokens: int) -> None:
        """Leave only the first ``num_tokens`` tokens in the cache; what was scored and not kept goes too."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which guesses survive.

    Args:
        path: The accepted nodes, root first.
        next_token: The target's own token after them.
    """

    path: tuple[int, ...]
    next_token: int


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward of the target settled.

    Args:
        draft: The guesses that it checked; empty for the prefill.
        tokens: The newly committed tokens: accepted guesses, then the target's own.
        num_accepted: How many of ``tokens`` were guessed; always ``len(tokens) - 1``, since the token at which an
            answer ends is counted as the target's own.
        scores: The target's scores, to be asked during ``observe`` only.
        finish_reason: Set on the last step.
    """

    draft: Draft
    tokens: tuple[int, ...]
    scores: Scores
    finish_reason: FinishReason | None = None

    @property
    def num_accepted(self) -> int:
        return len(self.tokens) - 1


class Drafter(Protocol):
    """Where guesses come from."""

    def begin(self, prompt: Sequence[int]) -> None:
        """A new sequence starts: forget the last one."""
        ...

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        """Guess what follows ``context``, all committed tokens, with at most ``max_tokens`` >= 1 guesses.

        Lookahead rows come on top of them.
        """
        ...

    def observe(self, step: Step) -> None:
        """Learn from a step: its committed tokens, its scores; the first one of a sequence is the prefill's.

        ``step.draft`` is the part of the proposed draft that was scored: some guesses may be missing, and the lookahead
        rows are all there or none is.
        """
        ...
