"""What the parts ask of each other: Drafter, Target, Scores, Heads, and the Step they share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from foretoken.core.draft import Draft
from foretoken.core.errors import RequestError

FinishReason = Literal["stop", "length"]

Need = Literal["top", "runner_up", "hidden", "logprobs", "row_logits"]
"""A method of ``Scores`` that a drafter may need and a target may provide."""

_NEEDS: dict[Need, str] = {
    "top": "the likeliest tokens of a row",
    "runner_up": "the second choice of a row",
    "hidden": "the hidden states of a row",
    "logprobs": "the log-probabilities of all tokens after a row",
    "row_logits": "the logits of a row",
}


class Top(NamedTuple):
    """The tokens of the largest logits after some rows, best first, and their probabilities before any processor.

    Both are nested lists or arrays, whatever the engine has at hand: ``numpy.asarray`` reads either.

    Args:
        tokens: [rows, k]. Fewer than k if the vocabulary is smaller.
        probs: [rows, k], of the softmax over the vocabulary at temperature 1.
    """

    tokens: Any
    probs: Any


class Candidates(NamedTuple):
    """What heads say of the next token after some rows, best first by ``logprobs``.

    Args:
        tokens: int [rows, k], as ``numpy.asarray`` reads it.
        logprobs: float [rows, k], log softmax(logits / temperature) of the heads; at temperature 1 if the target's
            choice is greedy.
        noise: float [rows, k], the noise that the choice adds to each token at this position; 0 if it is greedy.
    """

    tokens: Any
    logprobs: Any
    noise: Any


class Heads(Protocol):
    """Trained heads that read what the target's output head read, and guess the tokens after the pending one.

    The pending token is the last committed one, which the target has not read yet.
    """

    @property
    def num_heads(self) -> int:
        """How many tokens in a row they guess."""
        ...

    def start(self, state: Any, token: int, position: int) -> Candidates:
        """What the first head says of the token after the pending one: one row.

        Args:
            state: ``Scores.hidden([row])[0]`` of the row that chose the pending token.
            token: The pending token.
            position: How many tokens come before the guessed one.
        """
        ...

    def extend(self, rows: Sequence[int], ranks: Sequence[int]) -> Candidates:
        """What the next head says, called at most ``num_heads`` - 1 times after ``start``.

        Row i continues candidate ``ranks[i]`` of row ``rows[i]`` of the last ``Candidates``. Heads that do not depend
        on each other's tokens say the same in every row.
        """
        ...


class Rescorer(Protocol):
    """A language model over tokens alone, which weighs what heads guess, each guess after those before it."""

    def begin(self, prompt: Sequence[int]) -> None:
        """A new sequence begins."""
        ...

    def observe(self, step: Step) -> None:
        """Some tokens were committed."""
        ...

    def chances(self, paths: Any, tokens: Any) -> Any:
        """How likely some tokens are after the committed text and a path of guesses.

        Args:
            paths: int32 [rows, length], arrays of numpy.
            tokens: int32 [rows, k].

        Returns:
            float32 [rows, k + 1]: of each token, 0 where nothing is known of it; then of all tokens together of which
            nothing is known.
        """
        ...


class Scores(Protocol):
    """The target's answer to a draft: row 0 follows the last committed token, row i + 1 follows node i.

    A row costs nothing until it is asked for, and the loop asks only along the accepted path, so that logits processors
    see the very calls that plain decoding makes; ``top`` asks none. Scores hold until the next ``score``.

    The loop needs ``choose`` alone. An engine that derives from this class overrides the methods that its target
    provides, and leaves the others.
    """

    def choose(self, row: int) -> int:
        """The target's own token after ``row``: the argmax, or what the seed selects at this position."""
        ...

    def runner_up(self, row: int) -> tuple[int, float]:
        """The token that came second in the choice after ``row``, and by how much it lost.

        That is the difference of what the choice is the argmax of: the processed logits, or under sampling their sums
        with the seed's noise. It is infinite where no other token could be chosen. Only where the target provides
        "runner_up".
        """
        raise RuntimeError('This target does not provide "runner_up".')

    def top(self, rows: Sequence[int], k: int) -> Top:
        """The ``k`` >= 1 likeliest tokens after some rows, rejected rows too. Only where the target provides "top"."""
        raise RuntimeError('This target does not provide "top".')

    def hidden(self, rows: Sequence[int]) -> Any:
        """What the output head reads after some rows, [rows, width]: an array of the engine's own kind and device.

        Only where the target provides "hidden".
        """
        raise RuntimeError('This target does not provide "hidden".')

    def logprobs(self, row: int) -> Any:
        """The log-probabilities of all tokens after a row, [vocab], before any processor and at temperature 1.

        An array or a list, as ``numpy.asarray`` reads it. Only where the target provides "logprobs".
        """
        raise RuntimeError('This target does not provide "logprobs".')

    def row_logits(self, row: int) -> Any:
        """The logits after a row before any processor, [vocab], as ``numpy.asarray`` reads them.

        Only where the target provides "row_logits".
        """
        raise RuntimeError('This target does not provide "row_logits".')


class Target(Protocol):
    """A language model with a rewindable cache, one sequence at a time.

    A target that must know before the prefill what its scores will be asked for has a method ``expect``, which
    takes that ``frozenset[Need]``. One that can go on from what was computed of another prompt's beginning has a
    method ``reuse``, which takes a ``memory.prefixes.Prefix``; it is asked before the prefill, too. One that goes
    back to an earlier state instead of dropping rejected nodes has an attribute ``num_reread``: how many committed
    tokens the next forward reads again before the last one. It is 0 where nothing was rejected, and None, or
    missing, where nothing is ever read again. One whose forwards run in the calling thread alone may have a
    ``clock``, such as ``time.thread_time``, which other programs do not disturb; the others are timed by
    ``time.perf_counter``.
    """

    @property
    def provides(self) -> frozenset[Need]:
        """What its scores can be asked for besides ``choose``. A target without this attribute provides nothing."""
        ...

    @property
    def supports_trees(self) -> bool:
        """Whether ``score`` takes drafts with branches and lookahead rows; a chain is made of them otherwise."""
        ...

    @property
    def max_length(self) -> int | None:
        """Most tokens of prompt and answer together. None means no limit."""
        ...

    @property
    def max_draft_depth(self) -> int | None:
        """How deep the next draft may be if its rows are to be scored as plain decoding would. None means no limit."""
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


class Helpers(Protocol):
    """The further models and the heads that an engine runs for drafters. An engine overrides what it can run."""

    @property
    def draft_target(self) -> Callable[[Any, Target], RewindableTarget] | None:
        """Gives a smaller model, by name or as an object, that chooses as a target does.

        None if the engine runs no second model.
        """
        return None

    @property
    def exit_target(self) -> Callable[[int | None, Target], RewindableTarget] | None:
        """Gives the first layers of a target's model, on its cache; how many, or None for a third of them.

        None if the engine cannot leave a forward early.
        """
        return None

    @property
    def heads(self) -> Callable[[Target], Heads] | None:
        """Gives trained heads for one answer of a target, whose choice says their temperature and noise.

        None if there are none for this model, or the engine runs none.
        """
        return None

    @property
    def rescorer(self) -> Callable[[], Rescorer] | None:
        """Gives the language model that was trained beside the heads, for one answer. None if there is none."""
        return None


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
        scores: The target's scores, to be asked during ``observe`` only; None from an engine that shows none.
        finish_reason: Set on the last step.
        path: The accepted nodes of ``draft``, root first. The token at which an answer ends counts as the target's own.
        num_reread: How many committed tokens the forward read again, since guesses of the step before it were rejected;
            None of a target that reads nothing again.
        propose_seconds: What the drafter took to propose; 0 if it was not asked.
        observe_seconds: What it took to observe; 0 while it does.
    """

    draft: Draft
    tokens: tuple[int, ...]
    scores: Scores | None = None
    finish_reason: FinishReason | None = None
    path: tuple[int, ...] = ()
    num_reread: int | None = None
    propose_seconds: float = 0.0
    observe_seconds: float = 0.0

    @property
    def num_rows(self) -> int:
        """How many rows the forward went over: what was read again, the last committed token, and the draft."""
        return (self.num_reread or 0) + 1 + len(self.draft)

    @property
    def num_accepted(self) -> int:
        """How many of ``tokens`` were guessed; all but the last."""
        return len(self.path)

    @property
    def draft_seconds(self) -> float:
        """What the drafter took in all."""
        return self.propose_seconds + self.observe_seconds


class Drafter(Protocol):
    """Where guesses come from.

    A drafter that asks ``step.scores`` for more than ``choose`` says so in an attribute ``needs``, a
    ``frozenset[Need]``. Without this attribute it needs nothing.
    """

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


def needs_of(drafter: Drafter) -> frozenset[Need]:
    """What a drafter asks the target's scores for besides ``choose``."""
    needs: frozenset[Need] = getattr(drafter, "needs", frozenset())
    return needs


def require(name: str, needs: frozenset[Need], target: Target) -> None:
    """Refuse a drafter that needs more than a target provides.

    Args:
        name: What the message calls the drafter.
        needs: What it asks the target's scores for.
        target: Whose scores they are.

    Raises:
        ForetokenError: If something is missing.
    """
    missing = needs - getattr(target, "provides", frozenset())
    if missing:
        raise RequestError(
            f"The drafter {name} needs {' and '.join(_NEEDS[need] for need in sorted(missing))}, "
            f"which the target {type(target).__name__} does not provide: use a drafter that needs only tokens, such as "
            '"ngram", or another target.'
        )


def reread_by(target: Target) -> int | None:
    """How many committed tokens the next forward of a target reads again; None if it never does."""
    num_reread: int | None = getattr(target, "num_reread", None)
    return num_reread


def clock_of(target: Target) -> Callable[[], float]:
    """What the steps of a target are timed by; see ``Target``."""
    clock: Callable[[], float] = getattr(target, "clock", time.perf_counter)
    return clock


def announce(needs: frozenset[Need], target: Target) -> None:
    """Let a target know what the next answer's scores will be asked for, if it wants to."""
    expect: Callable[[frozenset[Need]], None] | None = getattr(target, "expect", None)
    if expect is not None:
        expect(needs)
