"""GGUF files: our drafters and llama-cpp-python's own prompt lookup beside plain decoding, in turns, by two clocks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from foretoken.core.decode import check_request, decode
from foretoken.drafters import DEFAULT_DRAFTER, Parts, recipe_of
from foretoken.engines.llama_cpp.engine import LlamaCppEngine
from foretoken.engines.llama_cpp.target import LlamaCppTarget
from foretoken.measure.harness import in_turns
from foretoken.measure.measured_model import MeasuredEngine
from foretoken.measure.prompts import Question
from foretoken.measure.run import SEED, Conditions
from foretoken.memory.namespace import Namespace

PLAIN, THEIRS, LOOKUP = "plain", "llama-cpp-python", "llama-cpp-python's lookup"
LOOKED_UP = 10  # tokens, its default


class Timed(NamedTuple):
    """An answer, and what its tokens after the first one took by both clocks.

    Args:
        tokens: Of the answer.
        cpu: Seconds of this process.
        wall: Seconds.
        steps: Forwards after the prefill. None if they were not counted.
    """

    tokens: list[int]
    cpu: float
    wall: float
    steps: int | None

    @classmethod
    def of(cls, parts: Iterable[Sequence[int]], counted: bool) -> Timed:
        """Run an answer to its end.

        Args:
            parts: What each forward committed, the prefill's first; or each token, if they are not counted.
            counted: Whether a part is a forward.
        """
        tokens, num = list[int](), -1
        cpu = wall = 0.0
        for part in parts:
            tokens += part
            num += 1
            if num == 0:
                cpu, wall = time.process_time(), time.perf_counter()
        return cls(tokens, time.process_time() - cpu, time.perf_counter() - wall, num if counted else None)


@dataclass(frozen=True)
class Line:
    """What a method comes to on the prompts of one kind.

    Args:
        file: Its name.
        weights: The type of most of its weights.
        decoding: "greedy" or "sampled at ...".
        kind: Of prompts; "all" for all of them.
        method: Its name.
        cpu_speed: Tokens a second of processor time over those of our plain decoding: the geometric mean over prompts.
        wall_speed: The same by the clock on the wall.
        least: The least of the prompts' speeds, in processor time.
        tokens_per_step: None if steps were not counted.
        same_text: Of how many prompts the text was plain decoding's, by the same library.
        prompts: How many there were.
    """

    file: str
    weights: str
    decoding: str
    kind: str
    method: str
    cpu_speed: float
    wall_speed: float
    least: float
    tokens_per_step: float | None
    same_text: int
    prompts: int


Player = Callable[[Question], Timed]


def measure(
    measured: MeasuredEngine, questions: Sequence[Question], conditions: Conditions
) -> Iterator[dict[str, list[Timed]]]:
    """For each question every method's answers. Each round has a memory of its own, as in use.

    Args:
        measured: The file.
        questions: What is asked, at least one.
        conditions: Of all answers.

    Raises:
        ForetokenError: If a prompt leaves no room for an answer.
    """
    assert isinstance(measured.engine, LlamaCppEngine)
    for question in questions:
        check_request(len(question.prompt), conditions.max_new_tokens, measured.max_length)
    theirs = _theirs(measured, conditions) if conditions.temperature == 0 else {}
    for player in (_players(measured, conditions) | theirs).values():
        player(questions[0])  # what is compiled or read at first use
    rounds = [_players(measured, conditions) | theirs for _ in range(conditions.rounds)]
    return in_turns(rounds, questions)


def summarise(
    measured: MeasuredEngine, questions: Sequence[Question], answers: Sequence[dict[str, list[Timed]]], decoding: str
) -> Iterator[Line]:
    """A line for each kind of prompt and method."""
    engine = measured.engine
    pairs = [pair for pair in zip(questions, answers, strict=True) if len(pair[1][PLAIN][0].tokens) > 1]
    for kind in ("all", *dict.fromkeys(question.kind for question, _ in pairs)):
        some = [own for question, own in pairs if kind in ("all", question.kind)]
        for method in some[0]:
            own = [(one[method], one[PLAIN], one[THEIRS if method == LOOKUP else PLAIN]) for one in some]
            speeds = [
                [(plain.cpu / one.cpu, plain.wall / one.wall) for one, plain in zip(mine, plains, strict=True)]
                for mine, plains, _ in own
            ]
            cpu, wall = ([statistics.median(pair[i] for pair in one) for one in speeds] for i in (0, 1))
            steps = sum(mine[0].steps or 0 for mine, _, _ in own)
            tokens = sum(len(mine[0].tokens) - 1 for mine, _, _ in own)
            yield Line(
                engine.model.path.name,
                engine.dtype,
                decoding,
                kind,
                method,
                statistics.geometric_mean(cpu),
                statistics.geometric_mean(wall),
                min(cpu),
                tokens / steps if steps else None,
                sum(all(one.tokens == base[0].tokens for one in mine) for mine, _, base in own),
                len(own),
            )


def _players(measured: MeasuredEngine, conditions: Conditions) -> dict[str, Player]:
    """Plain decoding, chains, trees where they are allowed, and what answers use by themselves."""
    ways: dict[str, tuple[str, bool | None]] = {
        PLAIN: ("none", None),
        "chain": (DEFAULT_DRAFTER, False),
        "tree": (DEFAULT_DRAFTER, True),
        "auto": (DEFAULT_DRAFTER, None),
        "prompt-lookup": ("prompt-lookup", None),
    }
    if not measured.engine.target().supports_trees:
        del ways["tree"]
    return {name: _Ours(measured, conditions, *way) for name, way in ways.items()}


class _Ours:
    """A drafter in one round, and the memory of its answers from question to question."""

    def __init__(self, measured: MeasuredEngine, conditions: Conditions, drafter: str, trees: bool | None) -> None:
        self.conditions, self.costs, self.stop_tokens = conditions, measured.costs, measured.stop_tokens
        self.target = measured.target(conditions.temperature, SEED)
        if trees is not None:
            assert isinstance(self.target, LlamaCppTarget)
            self.target.supports_trees = trees
        self.namespace = Namespace(background=measured.background)
        recipe = recipe_of(drafter)
        self.calibrated = recipe is not None and recipe.calibrated
        parts = Parts.of(measured.helpers, self.target, lambda: self.namespace.ngrams, self.costs)
        self.drafter = None if recipe is None else recipe.make(parts)

    def __call__(self, question: Question) -> Timed:
        learning = self.namespace.new_budget(self.costs) if self.calibrated else None
        steps = decode(
            self.target,
            self.drafter,
            question.prompt,
            max_new_tokens=self.conditions.max_new_tokens,
            stop_tokens=self.stop_tokens,
            budget=learning,
        )
        answer = Timed.of((step.tokens for step in steps), counted=True)
        self.namespace.keep(answer.tokens)
        if learning is not None:
            self.namespace.hand_back(learning)
        return answer


def _theirs(measured: MeasuredEngine, conditions: Conditions) -> dict[str, Player]:
    """llama-cpp-python's ``Llama``, plain and with its prompt lookup."""
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    assert isinstance(measured.engine, LlamaCppEngine)
    context, path = measured.engine.max_length, str(measured.engine.model.path)
    threads = measured.engine.threads
    how: dict[str, Any] = {"n_ctx": context, "n_batch": context, "n_threads": threads, "n_threads_batch": threads}
    lookup = LlamaPromptLookupDecoding(num_pred_tokens=LOOKED_UP)
    stop = measured.stop_tokens

    def player(llama: Any) -> Player:
        def answer(question: Question) -> Timed:
            llama.reset()
            tokens = llama.generate(list(question.prompt), temp=0.0, repeat_penalty=1.0)
            return Timed.of(_until(islice(tokens, conditions.max_new_tokens), stop), counted=False)

        return answer

    return {
        THEIRS: player(Llama(path, **how, verbose=False)),
        LOOKUP: player(Llama(path, **how, verbose=False, draft_model=lookup)),
    }


def _until(tokens: Iterable[int], stop: Any) -> Iterator[list[int]]:
    """Each token, up to the first that ends an answer, with that."""
    for token in tokens:
        yield [token]
        if token in stop:
            return
