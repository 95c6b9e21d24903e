"""Methods on a model: plain decoding, drafters and, of transformers, its own loop, in turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foretoken.core.budget import FixedBudget
from foretoken.core.costs import CostCurve
from foretoken.core.decode import check_request, decode
from foretoken.core.errors import ForetokenError
from foretoken.drafters import DraftModel, Parts
from foretoken.engines.replay import ReplayTarget
from foretoken.measure.differences import TextChanged, first_difference, gap
from foretoken.measure.harness import Answer, Row, in_turns
from foretoken.measure.loops import loops
from foretoken.measure.measured_model import Measured, MeasuredModel
from foretoken.measure.methods import Method
from foretoken.measure.prompts import Question
from foretoken.memory.namespace import Namespace

SEED = 0
WARM_UP = 8  # tokens


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


def measure(
    measured: Measured, questions: Sequence[Question], methods: Sequence[Method], conditions: Conditions
) -> Iterator[list[Row]]:
    """For each question a row of every method; none if the answer ends with the prefill's token.

    Each round has drafters and a memory of its own, which go through the questions as they would in use and meet each
    once. Transformers' own loop is left out if answers are sampled: it draws another text for the same seed.

    Args:
        measured: What answers.
        questions: What is asked, at least one.
        methods: Plain decoding and others.
        conditions: Of all answers.

    Raises:
        ForetokenError: If a prompt leaves no room for an answer.
        TextChanged: If a text is not plain decoding's in float32 or float64 or where exactness is in force, or an
            answer not the recorded one.
    """
    methods = [method for method in methods if method.generate is None or not conditions.temperature]
    for question in questions:
        check_request(len(question.prompt), _length(question, conditions), measured.max_length)
    for method in methods:  # what is compiled at first use is compiled now
        warm_up = replace(conditions, max_new_tokens=WARM_UP)
        _player(measured, replace(method, drafted=WARM_UP), warm_up)(replace(questions[0], record=None))
    rounds = [
        {method.name: _player(measured, method, conditions) for method in methods} for _ in range(conditions.rounds)
    ]
    for question, answers in zip(questions, in_turns(rounds, questions), strict=True):
        plain = answers["plain"]
        if plain[0].stats.steps:
            yield [_row(measured, question, method, answers[method.name], plain, conditions) for method in methods]
        else:
            yield []


def _player(measured: Measured, method: Method, conditions: Conditions) -> Callable[[Question], Answer]:
    """A method in one round."""
    if method.generate is not None:
        assert isinstance(measured, MeasuredModel)
        return _TransformersPlayer(measured, method.generate, conditions)
    return _Player(measured, method, conditions)


class _Player:
    """A drafter in one round, and the memory of its answers from question to question."""

    def __init__(self, measured: Measured, method: Method, conditions: Conditions) -> None:
        self.conditions, self.drafted = conditions, method.drafted
        self.costs = measured.costs if method.drafted is None else CostCurve()
        self.target = measured.target(conditions.temperature, SEED)
        self.stop_tokens = measured.stop_tokens
        self.namespace = Namespace(background=measured.background)
        recipe = method.recipe
        if isinstance(recipe, DraftModel):  # whatever it calls the model
            recipe = replace(recipe, model=measured.draft_model)
        parts = Parts.of(measured.helpers, self.target, lambda: self.namespace.ngrams, self.costs)
        self.drafter = None if recipe is None else recipe.make(parts)

    def __call__(self, question: Question) -> Answer:
        learning = self.namespace.new_budget(self.costs) if self.drafted is None else None
        steps = decode(
            self.target if question.record is None else ReplayTarget(question.record, self.target),
            self.drafter,
            question.prompt,
            max_new_tokens=_length(question, self.conditions),
            stop_tokens=self.stop_tokens if question.record is None else (),
            budget=learning or FixedBudget(self.drafted or 0),
        )
        answer = Answer.of(steps)
        self.namespace.keep(answer.tokens)
        if learning is not None:
            self.namespace.hand_back(learning)
        return answer


class _TransformersPlayer:
    """Transformers' own loop, which does not say what its drafting takes or how far its guesses were judged."""

    def __init__(self, measured: MeasuredModel, options: Mapping[str, Any], conditions: Conditions) -> None:
        self.measured, self.options, self.conditions = measured, options, conditions

    def __call__(self, question: Question) -> Answer:
        length = _length(question, self.conditions)
        tokens, stats = self.measured.own_loop(question.prompt, length, question.record, self.options)
        return Answer(tokens, stats, stats.steps + stats.drafted, 0)


def _length(question: Question, conditions: Conditions) -> int:
    return conditions.max_new_tokens if question.record is None else len(question.record)


def _row(
    measured: Measured,
    question: Question,
    method: Method,
    answers: Sequence[Answer],
    plain: Sequence[Answer],
    conditions: Conditions,
) -> Row:
    """What the answers of a method come to.

    Raises:
        TextChanged: If a text is not the plain one in float32 or float64 or where exactness is in force, or not the
            recorded one. Exactness promises nothing of transformers' own loop, which has another attention.
    """
    text = plain[0].tokens
    positions = [at for answer in answers if (at := first_difference(text, answer.tokens)) is not None]
    differs_at = min(positions, default=None)
    known = question.record is not None
    row = Row(
        prompt=question.id,
        kind=question.kind,
        dtype=measured.dtype,
        decoding="recorded" if known else conditions.decoding,
        method=method.name,
        looped=loops(text),
        rounds=len(answers),
        tokens=sum(answer.stats.tokens for answer in answers),
        steps=sum(answer.stats.steps for answer in answers),
        rows=sum(answer.rows for answer in answers),
        guesses=sum(answer.stats.drafted for answer in answers),
        accepted=sum(answer.stats.accepted for answer in answers),
        judged=sum(answer.judged for answer in answers),
        drafter_seconds=sum(answer.stats.draft_seconds for answer in answers),
        prefill_seconds=statistics.median(answer.stats.prefill_seconds for answer in answers),
        speed=statistics.median(p.token_seconds / own.token_seconds for p, own in zip(plain, answers, strict=True)),
        differs_at=differs_at,
        gap=None if differs_at is None else gap(measured.target(0.0, SEED), [*question.prompt, *text[:differs_at]]),
    )
    is_exact = measured.exact and method.generate is None
    if row.difference is not None and (known or is_exact or row.dtype in ("float64", "float32")):
        raise TextChanged(f"Drafting changed a text. {row.difference}")
    return row
