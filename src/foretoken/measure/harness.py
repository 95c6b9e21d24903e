"""The harness: methods answer in turns, their texts are compared, and what they took becomes a row for each prompt.

``compare``, ``foretoken bench methods`` and the programs in ``benchmarks/`` have no loop but ``in_turns``. It knows no
engine: ``measure/run.py`` is where models of transformers answer.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from foretoken.core.contracts import Step
from foretoken.core.stats import DecodeStats

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


def in_turns(
    rounds: Sequence[Mapping[str, Callable[[Asked], Answered]]], questions: Iterable[Asked]
) -> Iterator[dict[str, list[Answered]]]:
    """Let the methods answer each question in turns, so that a slow moment of the machine slows them all.

    Args:
        rounds: For each round the methods by name, the same names in every round.
        questions: What is asked. The next is asked once the caller comes back for more.

    Yields:
        For each question, every method's answers, one a round.

    >>> double, square = lambda x: 2 * x, lambda x: x * x
    >>> list(in_turns([{"double": double, "square": square}] * 2, [3, 4]))
    [{'double': [6, 6], 'square': [9, 9]}, {'double': [8, 8], 'square': [16, 16]}]
    """
    for index, question in enumerate(questions):
        answers: dict[str, list[Answered]] = {name: [] for name in rounds[0]}
        for number, methods in enumerate(rounds):
            names = list(methods)
            first = (index + number) % len(names)  # no method is always the first
            for name in names[first:] + names[:first]:
                answers[name].append(methods[name](question))
        yield answers


@dataclass(frozen=True)
class Answer:
    """One answer of a method.

    Args:
        tokens: Of the answer.
        stats: What it cost.
        rows: Of all forwards after the prefill: the last token, guesses, lookahead rows, and what was read again.
        judged: As in ``Row``.
    """

    tokens: list[int]
    stats: DecodeStats
    rows: int
    judged: int

    @property
    def token_seconds(self) -> float:
        """Seconds a token, the first one and its prefill left out."""
        return (self.stats.seconds - self.stats.prefill_seconds) / (self.stats.tokens - 1)

    @classmethod
    def of(cls, steps: Iterable[Step]) -> Answer:
        """Run a decode to its end."""
        tokens: list[int] = []
        stats, rows, judged = DecodeStats(), 0, 0
        for step in steps:
            rows += step.num_rows if tokens else 0  # without those of the prefill
            stats.add(step)
            tokens += step.tokens
            judged += num_judged(step)
        return cls(tokens, stats, rows, judged)


def num_judged(step: Step) -> int:
    """The tokens of a step that guesses were judged by: those accepted, and the next where guesses were made for it."""
    last = step.path[-1] if step.path else -1
    return step.num_accepted + bool(step.draft.children(last) and step.finish_reason is None)


@dataclass(frozen=True)
class Row:
    """One prompt, one method. Counts and times are of all rounds together, and of the steps after the prefill.

    Args:
        prompt: Its id.
        kind: What it is of.
        dtype: The model's.
        decoding: "greedy" or "sampled at ...".
        method: Its name.
        looped: Whether the plain answer fell into a loop.
        rounds: How often it was answered.
        tokens: Of the answers, the first of each with them.
        steps: Forwards.
        rows: Of all forwards: the last token, guesses, lookahead rows, and what was read again.
        guesses: That were verified.
        accepted: Of these, how many became tokens.
        judged: The tokens that guesses were judged by: those accepted, and of each step the first that none named.
        drafter_seconds: Inside ``propose`` and ``observe``.
        prefill_seconds: Until the first token, the drafter's own reading of the prompt with it; the median.
        speed: How many times as many tokens came in the same time as by plain decoding; the median of the rounds.
        differs_at: How many tokens agree with the plain answer, the least of the rounds; None where all do.
        gap: By how much the best logit led the second there.
    """

    prompt: str
    kind: str
    dtype: str
    decoding: str
    method: str
    looped: bool
    rounds: int
    tokens: int
    steps: int
    rows: int
    guesses: int
    accepted: int
    judged: int
    drafter_seconds: float
    prefill_seconds: float
    speed: float
    differs_at: int | None
    gap: float | None

    @property
    def per_step(self) -> dict[str, float]:
        """What a step is on average."""
        steps = self.steps or 1  # transformers may accept a whole answer in its prefill
        return {
            "tokens_per_step": 1 + self.accepted / steps,
            "rows_per_step": self.rows / steps,
            "guesses_per_step": self.guesses / steps,
            "accepted_per_step": self.accepted / steps,
            "drafter_ms": 1000 * self.drafter_seconds / steps,
        }

    @property
    def acceptance(self) -> float | None:
        """Of the tokens that guesses were judged by, the share that one of them named; None where none was."""
        return self.accepted / self.judged if self.judged else None

    @property
    def difference(self) -> str | None:
        """Where the text is not plain decoding's, in words."""
        if self.differs_at is None:
            return None
        return (
            f"{self.prompt} ({self.dtype}, {self.decoding}), method {self.method}: another token after "
            f"{self.differs_at} that agree, where the best logits are {self.gap:.2g} apart."
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | self.per_step | {"acceptance": self.acceptance, "identical": self.differs_at is None}


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each dtype, decoding, kind and method, and over all kinds; answers that loop apart.

    The headline is what has the kind "all" and did not loop. Of speeds the geometric mean, of the rest the mean over
    the prompts.
    """
    lines: list[dict[str, Any]] = []
    for dtype, decoding, looped in sorted({(row.dtype, row.decoding, row.looped) for row in rows}):
        some = [row for row in rows if (row.dtype, row.decoding, row.looped) == (dtype, decoding, looped)]
        for kind in ["all", *sorted({row.kind for row in some})]:
            for method in dict.fromkeys(row.method for row in some):
                own = [row for row in some if row.method == method and kind in ("all", row.kind)]
                means = {
                    name: statistics.fmean(row.per_step[name] for row in own)
                    for name in ("tokens_per_step", "rows_per_step", "drafter_ms")
                }
                lines.append(
                    {
                        "dtype": dtype,
                        "decoding": decoding,
                        "looped": looped,
                        "kind": kind,
                        "method": method,
                        "prompts": len(own),
                        "same_text": sum(row.differs_at is None for row in own),
                        "speed": statistics.geometric_mean(row.speed for row in own),
                        "least": min(row.speed for row in own),
                    }
                    | means
                )
    return lines


def headline(summary: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines over all kinds, of answers that did not loop."""
    return [line for line in summary if line["kind"] == "all" and not line["looped"]]
