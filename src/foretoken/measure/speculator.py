"""What trained heads know, on answers that the model gave: the analysis of Kim et al. 2024 (arXiv 2404.09221).

The model answers plainly once, and its states are kept. Everything else is replayed on these answers: the heads one by
one, and the drafters, which are accepted just as in a real run. So a forward of the model is needed for each token only
once, whatever is compared.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretoken.core.budget import FixedBudget
from foretoken.core.contracts import Candidates, Need, Scores, Step, Target
from foretoken.core.decode import decode
from foretoken.core.draft import Draft
from foretoken.core.errors import RequestError
from foretoken.core.stats import DecodeStats
from foretoken.drafters import Parts, SharedNgrams
from foretoken.drafters.head_trees import LATTICE
from foretoken.engines.replay import ReplayScores, ReplayTarget
from foretoken.measure.loops import loops
from foretoken.measure.measured_model import MeasuredModel
from foretoken.measure.methods import METHODS
from foretoken.measure.prompts import Question
from foretoken.measure.run import SEED, Conditions
from foretoken.speculators.heads import TorchHeads

REPLAYED = tuple(
    f"{drafter}{shape}" for shape in ("-chain", "-paths", "") for drafter in ("speculator", "refined-speculator")
)
ORACLE, ORACLE_OF_ALL = f"oracle, {LATTICE} best tokens", "oracle, all candidates"
LEAST_TOKENS = 2  # of an answer: one step
MISSING = 1 << 30  # rank of a token that is no candidate


class States:
    """Drafts nothing, and keeps what the output head read where each token was chosen."""

    needs: frozenset[Need] = frozenset({"hidden"})

    def begin(self, prompt: Sequence[int]) -> None:
        self.kept: list[Any] = []

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        return Draft()

    def observe(self, step: Step) -> None:
        assert step.scores is not None, "see needs"
        self.kept.append(step.scores.hidden([0])[0])


@dataclass(frozen=True)
class Recording:
    """An answer that the model gave.

    Args:
        question: What was asked.
        tokens: Of the answer.
        states: Of the row that chose each token.
    """

    question: Question
    tokens: Sequence[int]
    states: Sequence[Any]


class RecordedTarget(ReplayTarget):
    """Chooses the tokens of a recording, and shows its states along the accepted path."""

    provides: frozenset[Need] = frozenset({"hidden"})

    def __init__(self, recording: Recording) -> None:
        super().__init__(recording.tokens)
        self.states = recording.states

    def prefill(self, prompt: Sequence[int]) -> Scores:
        super().prefill(prompt)
        return _RecordedScores(self, Draft(), None)

    def score(self, last_token: int, draft: Draft) -> Scores:
        super().score(last_token, draft)
        return _RecordedScores(self, draft, None)


class _RecordedScores(ReplayScores):
    def __init__(self, target: RecordedTarget, draft: Draft, real: Scores | None) -> None:
        super().__init__(target, draft, real)
        self.states = target.states

    def hidden(self, rows: Sequence[int]) -> list[Any]:
        return [self.states[self.start + (self.draft.depths[row - 1] if row else 0)] for row in rows]


@dataclass
class HeadCounts:
    """What one head said, summed over positions.

    Args:
        positions: Where it was asked, the true tokens before its own given.
        ranks: How often the true token had each rank, [LATTICE].
        entropy: Of what it says, in nats: of its candidates, and all other tokens as one.
        repeated: How often its best guess was that of the head before; of head 1, the pending token.
        drafts: Where that was looked at: each head is given the best guesses of those before.
    """

    positions: int = 0
    ranks: list[int] = field(default_factory=lambda: [0] * LATTICE)
    entropy: float = 0.0
    repeated: int = 0
    drafts: int = 0

    def as_dict(self, head: int) -> dict[str, Any]:
        """For JSON and the page."""
        return {
            "head": head,
            "top": [sum(self.ranks[: k + 1]) / max(1, self.positions) for k in range(LATTICE)],
            "entropy": self.entropy / max(1, self.positions),
            "repeated": self.repeated / max(1, self.drafts),
            "positions": self.positions,
        }


@dataclass
class Analysis:
    """What was found under one way of decoding.

    Args:
        decoding: In words.
        heads: A line for each head.
        text_repeats: How often a token of the answers equals the one before it.
        lengths: Tokens for each step: a line for each drafter and kind of prompt, and over all kinds; the oracles last.
        answers: How many there are.
        looped: How many more were left out because they loop.
    """

    decoding: str
    heads: list[dict[str, Any]]
    text_repeats: float
    lengths: list[dict[str, Any]]
    answers: int
    looped: int

    @property
    def rising(self) -> int:
        """The last head up to which the mean entropy rises from head to head."""
        entropies = [line["entropy"] for line in self.heads]
        falls = [i for i in range(1, len(entropies)) if entropies[i] <= entropies[i - 1]]
        return falls[0] if falls else len(entropies)


def analyse(
    measured: MeasuredModel, questions: Sequence[Question], conditions: Conditions
) -> Iterator[Analysis | None]:
    """Answer each question and look at the heads there; None after each, and then the analysis.

    Args:
        measured: The model and its speculator.
        questions: What is asked.
        conditions: How it is answered. Its rounds do not matter.

    Raises:
        ForetokenError: If there is no speculator, or all answers loop or end at once.
    """
    target = measured.target(conditions.temperature, SEED)
    find_heads = measured.helpers.heads
    if find_heads is None:
        raise RequestError("There are no trained heads for this model: name their folder with --speculator.")
    heads = find_heads(target)
    assert isinstance(heads, TorchHeads)
    counts = [HeadCounts() for _ in range(heads.num_heads)]
    stats: dict[tuple[str, str], list[DecodeStats]] = {}
    kept: list[Recording] = []
    looped = 0
    for question in questions:
        recording = record(target, question, conditions, measured.stop_tokens)
        if loops(recording.tokens):
            looped += 1
        elif len(recording.tokens) >= LEAST_TOKENS:
            kept.append(recording)
            for name, found in _replayed(recording, heads, measured).items():
                stats.setdefault((name, question.kind), []).append(found)
            for name, one in zip((ORACLE, ORACLE_OF_ALL), count(recording, heads, counts), strict=True):
                stats.setdefault((name, question.kind), []).append(one)
        yield None
    if not kept:
        raise RequestError("There is no answer to look at: all of them loop or end at once; use other prompts.")
    repeats = [token == before for one in kept for before, token in zip(one.tokens, one.tokens[1:], strict=False)]
    yield Analysis(
        conditions.decoding,
        [one.as_dict(i) for i, one in enumerate(counts, start=1)],
        sum(repeats) / len(repeats),
        _lengths(stats),
        len(kept),
        looped,
    )


def record(target: Target, question: Question, conditions: Conditions, stop_tokens: Collection[int]) -> Recording:
    """The plain answer to a question, and the states that chose it."""
    watching, tokens = States(), list[int]()
    for step in decode(
        target,
        watching,
        question.prompt,
        max_new_tokens=conditions.max_new_tokens,
        stop_tokens=stop_tokens,
        budget=FixedBudget(0),
    ):
        tokens += step.tokens
    return Recording(question, tokens, watching.kept)


def _replayed(recording: Recording, heads: TorchHeads, measured: MeasuredModel) -> dict[str, DecodeStats]:
    """What each drafter is accepted, with nothing remembered of other answers."""
    found = {}
    for name in REPLAYED:
        method, target = METHODS[name], RecordedTarget(recording)
        assert method.recipe is not None and method.drafted is not None
        drafter = method.recipe.make(Parts(target, lambda: SharedNgrams(measured.background), heads=lambda: heads))
        prompt, length = recording.question.prompt, len(recording.tokens)
        budget = FixedBudget(method.drafted)
        found[name] = DecodeStats.of(decode(target, drafter, prompt, max_new_tokens=length, budget=budget))
    return found


def count(recording: Recording, heads: TorchHeads, counts: Sequence[HeadCounts]) -> list[DecodeStats]:
    """Ask the heads after every token of an answer.

    Args:
        recording: The answer.
        heads: The heads.
        counts: For each head, to add to.

    Returns:
        The steps of an oracle, who drafts the right path as far as the lattice has it: the lattice of the heads' best
        tokens, and that of all candidates, from which drafters choose.
    """
    tokens, first = recording.tokens, len(recording.question.prompt)
    reaches: list[list[int]] = [[], []]  # after each token, how many further ones are in the lattices
    for place in range(len(tokens) - 1):
        start = recording.states[place], tokens[place], first + place + 1
        said = heads.start(*start)
        before, rank = tokens[place], 0
        for head, one in enumerate(counts):
            if head:
                said = heads.extend([0], [0])
            best = int(np.asarray(said.tokens)[0, 0])
            one.repeated += best == before
            one.drafts += 1
            before = best
        said, inside = heads.start(*start), [0, 0]
        for head, token in enumerate(tokens[place + 1 : place + 1 + len(counts)]):
            if head:
                said = heads.extend([0], [0 if rank == MISSING else rank])
            one = counts[head]
            one.positions += 1
            one.entropy += _entropy(said)
            ranks = np.flatnonzero(np.asarray(said.tokens)[0] == token)
            if not ranks.size and not heads.independent:
                break  # a head that reads the tokens before its own cannot be given this one
            rank = int(ranks[0]) if ranks.size else MISSING
            if rank < LATTICE:
                one.ranks[rank] += 1
            for i, width in enumerate((LATTICE, MISSING)):
                inside[i] += rank < width and inside[i] == head
        for reach, num in zip(reaches, inside, strict=True):
            reach.append(num)
    return [_walked(reach) for reach in reaches]


def _walked(reach: Sequence[int]) -> DecodeStats:
    """The steps that accept as many tokens as there are after each place, up to the end of the answer."""
    place = steps = 0
    while place < len(reach):
        place += min(reach[place], len(reach) - place - 1) + 1  # the last token is the target's own
        steps += 1
    return DecodeStats(len(reach) + 1, steps, accepted=len(reach) - steps)


def _entropy(said: Candidates) -> float:
    """Of the first row, in nats, all tokens that are no candidates taken as one."""
    logprobs = np.asarray(said.logprobs, np.float64)[0]
    probs = np.exp(logprobs)
    rest = 1.0 - float(probs.sum())
    return float(-(probs * logprobs).sum()) - (rest * math.log(rest) if rest > 0 else 0.0)


def _lengths(stats: dict[tuple[str, str], list[DecodeStats]]) -> list[dict[str, Any]]:
    lines = []
    for name in (*REPLAYED, ORACLE, ORACLE_OF_ALL):
        kinds = {kind: found for (other, kind), found in stats.items() if other == name}
        for kind, found in {"all": [one for group in kinds.values() for one in group], **kinds}.items():
            total = DecodeStats.total(found)
            lines.append(
                {
                    "method": name,
                    "kind": kind,
                    "answers": len(found),
                    "steps": total.steps,
                    "tokens_per_step": total.acceptance_length,
                    "drafted_per_step": total.drafted / max(1, total.steps) if name in REPLAYED else None,
                }
            )
    return lines
