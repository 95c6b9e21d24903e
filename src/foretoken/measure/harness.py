"""Methods in turns: each answers every prompt, round by round, and its text is held against plain decoding's."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from transformers import LogitsProcessorList, PreTrainedModel, TemperatureLogitsWarper

from foretoken.core.budget import Budget, FixedBudget
from foretoken.core.contracts import Step
from foretoken.core.decode import check_request, decode
from foretoken.core.errors import ForetokenError
from foretoken.core.stats import DecodeStats
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.positions import context_length
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.measure.differences import TextChanged, first_difference, gap
from foretoken.measure.loops import loops
from foretoken.measure.methods import Given, Method
from foretoken.measure.subject import Subject
from foretoken.memory.namespace import Namespace
from foretoken.texts import is_text

SEED = 0
WARM_UP = 8  # tokens
FIELDS = ("id", "kind", "prompt")


@dataclass(frozen=True)
class Conditions:
    """How everything is answered.

    Args:
        temperature: 0 for greedy; above 0 samples, and changes nothing else.
        rounds: How often each method answers each prompt.
        max_new_tokens: Of an answer, at least 2: the first is the prefill's.

    Raises:
        ForetokenError: If one is out of its range.
    """

    temperature: float = 0.0
    rounds: int = 3
    max_new_tokens: int = 200

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ForetokenError(f"temperature is {self.temperature}: use 0 for greedy or a number above it.")
        if self.rounds < 1:
            raise ForetokenError(f"rounds is {self.rounds}: each method needs at least 1.")
        if self.max_new_tokens < 2:
            raise ForetokenError(f"max_new_tokens is {self.max_new_tokens}: a step needs at least 2.")

    @property
    def decoding(self) -> str:
        """In words."""
        return f"sampled at {self.temperature:g}" if self.temperature else "greedy"

    @property
    def choice(self) -> Choice:
        """How tokens are chosen."""
        if not self.temperature:
            return Choice()
        return Choice(LogitsProcessorList([TemperatureLogitsWarper(self.temperature)]), SEED)


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
        rows: Of all forwards: the last token, guesses and lookahead rows.
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
        return {
            "tokens_per_step": 1 + self.accepted / self.steps,
            "rows_per_step": self.rows / self.steps,
            "guesses_per_step": self.guesses / self.steps,
            "accepted_per_step": self.accepted / self.steps,
            "drafter_ms": 1000 * self.drafter_seconds / self.steps,
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


def parse_prompts(text: str, limit: int | None = None) -> list[dict[str, str]]:
    """Prompts as JSON lines, each with ``id``, ``kind`` and ``prompt``.

    Args:
        text: The lines.
        limit: Of each kind, how many are taken; None for all.

    Raises:
        ForetokenError: If a line is not such a prompt, an id comes again, or there is none.
    """
    if limit is not None and limit < 1:
        raise ForetokenError(f"limit is {limit}: take at least 1 prompt of each kind.")
    prompts: dict[str, dict[str, str]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not all(is_text(row.get(name)) and row[name] for name in FIELDS):
            raise ForetokenError(f"Line {number} of the prompts is no object with the texts id, kind and prompt.")
        if row["id"] in prompts:
            raise ForetokenError(f"Line {number} of the prompts has the id {row['id']!r} of an earlier one.")
        if limit is None or sum(row["kind"] == other["kind"] for other in prompts.values()) < limit:
            prompts[row["id"]] = row
    if not prompts:
        raise ForetokenError("There are no prompts: give lines with id, kind and prompt.")
    return list(prompts.values())


def measure(
    subject: Subject, prompts: Sequence[dict[str, str]], methods: Sequence[Method], conditions: Conditions
) -> Iterator[list[Row]]:
    """For each prompt a row of every method; none where the answer ends with the prefill's token.

    Each round has drafters of its own, which go through the prompts as they would in use and meet each once; budgets
    learn what forwards cost from all of it.

    Args:
        subject: What answers.
        prompts: As ``parse_prompts`` gives them.
        methods: Plain decoding and others.
        conditions: Of all answers.

    Raises:
        ForetokenError: If a prompt leaves no room for an answer.
        TextChanged: If drafting changed a text in float32 or float64.
    """
    encoded = [list(subject.encode(prompt["prompt"])) for prompt in prompts]
    for ids in encoded:
        check_request(len(ids), conditions.max_new_tokens, context_length(subject.model))
    for method in methods:  # what is compiled at first use is compiled now
        _Player(subject, method, FixedBudget(WARM_UP), replace(conditions, max_new_tokens=WARM_UP)).answer(encoded[0])
    budgets = [method.budget() for method in methods]
    rounds = [
        [_Player(subject, method, budget, conditions) for method, budget in zip(methods, budgets, strict=True)]
        for _ in range(conditions.rounds)
    ]
    for index, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
        runs: dict[str, list[_Run]] = {method.name: [] for method in methods}
        for number, players in enumerate(rounds):
            first = (index + number) % len(players)  # nobody is always the first
            for player in (*players[first:], *players[:first]):
                runs[player.name].append(player.answer(ids))
        if runs["plain"][0].stats.steps:
            yield [_row(subject, prompt, ids, name, own, runs["plain"], conditions) for name, own in runs.items()]
        else:
            yield []


@dataclass(frozen=True)
class _Run:
    """One answer: its tokens, what it cost, the rows of its steps, and the tokens judged by."""

    tokens: list[int]
    stats: DecodeStats
    rows: int
    judged: int

    @property
    def token_seconds(self) -> float:
        """Of a token after the first."""
        return (self.stats.seconds - self.stats.prefill_seconds) / (self.stats.tokens - 1)


class _Player:
    """A method in one round: its target, its drafter, and the memory of its answers from prompt to prompt."""

    def __init__(self, subject: Subject, method: Method, budget: Budget, conditions: Conditions) -> None:
        self.name, self.budget, self.conditions = method.name, budget, conditions
        self.target = TransformersTarget(subject.model, conditions.choice, max_length=context_length(subject.model))
        self.namespace = Namespace(background=subject.background)
        self.drafter = method.make(Given(subject, self.target, budget, self.namespace), **method.settings)

    def answer(self, ids: list[int]) -> _Run:
        """Answer a prompt."""
        tokens: list[int] = []
        stats, drafted_rows, judged = DecodeStats(), 0, 0
        for step in decode(
            self.target,
            self.drafter,
            ids,
            max_new_tokens=self.conditions.max_new_tokens,
            stop_tokens=_stop_tokens(self.target.model),
            budget=self.budget,
        ):
            stats.add(step)
            tokens += step.tokens
            drafted_rows += len(step.draft)
            judged += num_judged(step)
        self.namespace.keep(tokens)
        return _Run(tokens, stats, stats.steps + drafted_rows, judged)


def num_judged(step: Step) -> int:
    """The tokens of a step that guesses were judged by: those accepted, and the next where guesses were made for it."""
    last = step.path[-1] if step.path else -1
    return step.num_accepted + bool(step.draft.children(last) and step.finish_reason is None)


def _stop_tokens(model: PreTrainedModel) -> list[int]:
    config = model.generation_config
    stop = None if config is None else config.eos_token_id
    return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)


def _row(
    subject: Subject,
    prompt: dict[str, str],
    ids: list[int],
    method: str,
    runs: Sequence[_Run],
    plain: Sequence[_Run],
    conditions: Conditions,
) -> Row:
    """What the runs of a method come to.

    Raises:
        TextChanged: If a text is not the plain one in float32 or float64.
    """
    text = plain[0].tokens
    positions = [at for run in runs if (at := first_difference(text, run.tokens)) is not None]
    differs_at = min(positions, default=None)
    row = Row(
        prompt=prompt["id"],
        kind=prompt["kind"],
        dtype=subject.dtype,
        decoding=conditions.decoding,
        method=method,
        looped=loops(text),
        rounds=len(runs),
        tokens=sum(run.stats.tokens for run in runs),
        steps=sum(run.stats.steps for run in runs),
        rows=sum(run.rows for run in runs),
        guesses=sum(run.stats.drafted for run in runs),
        accepted=sum(run.stats.accepted for run in runs),
        judged=sum(run.judged for run in runs),
        drafter_seconds=sum(run.stats.draft_seconds for run in runs),
        prefill_seconds=statistics.median(run.stats.prefill_seconds for run in runs),
        speed=statistics.median(p.token_seconds / run.token_seconds for p, run in zip(plain, runs, strict=True)),
        differs_at=differs_at,
        gap=None if differs_at is None else gap(subject.model, [*ids, *text[:differs_at]]),
    )
    if row.difference is not None and row.dtype in ("float64", "float32"):
        raise TextChanged(f"Drafting changed a text. {row.difference}")
    return row


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
