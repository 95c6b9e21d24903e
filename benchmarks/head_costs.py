"""What a draft of trained heads costs, in forwards of the model that they were trained for.

Plain and drafted answers to the same prompts alternate. A forward is one of plain decoding, over one row.

    python -m benchmarks.head_costs --speculator FOLDER

Prints for a chain and for the tree of the most probable paths, greedy and sampled at 0.8, how many nodes a draft has,
and what it costs to propose it and to learn from what came of it. Medians over the steps, on one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Annotated, Any, TypeVar, cast

import torch
import typer

from benchmarks.common import RESULTS, SEED, Out, Rounds, finish, run
from foretoken.core.budget import FixedBudget
from foretoken.core.decode import decode
from foretoken.core.errors import ModelError
from foretoken.drafters.head_trees import BestFirst
from foretoken.drafters.heads import FLOOR, LEAST_FLOOR, WIDTH, HeadsDrafter
from foretoken.engines.base import FOUND
from foretoken.engines.transformers.engine import TransformersEngine
from foretoken.engines.transformers.loading import load_model, load_tokenizer
from foretoken.measure.harness import in_turns
from foretoken.measure.prompts import bundled_prompts, parse_prompts

F = TypeVar("F", bound=Callable[..., Any])

TEMPERATURES = (0.0, 0.8)
SHAPES = {  # and the most nodes of a draft
    "chain": (BestFirst(0.0, 1), 4),
    "tree": (BestFirst(FLOOR, WIDTH), 24),
    "full tree": (BestFirst(LEAST_FLOOR, WIDTH), 24),
}
NEW_TOKENS = 128


def main(
    model: Annotated[str, typer.Option(help='Model folder, name on the hub, or "tiny".')] = "tiny",
    speculator: Annotated[str, typer.Option(help="Folder of the trained heads.")] = FOUND,
    dtype: Annotated[str, typer.Option(help="Of the model.")] = "float32",
    limit: Annotated[int, typer.Option(min=1, help="Prompts to take of each kind.")] = 2,
    rounds: Rounds = 2,
    out: Out = RESULTS / "head-costs.json",
) -> None:
    """Time what a draft of trained heads costs."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(model)
    engine = TransformersEngine(load_model(model, dtype), tokenizer, speculator=speculator)
    if engine.heads is None:
        raise ModelError("There are no trained heads in the model's folder: name theirs with --speculator.")
    questions = parse_prompts(bundled_prompts(), lambda text: tokenizer(text)["input_ids"], limit)
    prompts = [question.prompt for question in questions]
    rows = [row for temperature in TEMPERATURES for row in measure(engine, prompts, temperature, rounds)]
    finish(out, {"rows": rows}, rows, workload=bundled_prompts())


@dataclass
class Steps:
    """The steps of one method: their seconds, nodes and tokens."""

    forward: list[float] = field(default_factory=list)
    propose: list[float] = field(default_factory=list)
    observe: list[float] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def measure(
    engine: TransformersEngine, prompts: Sequence[Sequence[int]], temperature: float, rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each shape."""
    found = {name: Steps() for name in ("plain", *SHAPES)}
    methods = {name: partial(answer, engine, name, temperature, steps) for name, steps in found.items()}
    for _ in in_turns([methods] * rounds, prompts):
        pass
    forward = statistics.median(found["plain"].forward)
    for name in SHAPES:
        steps = found[name]
        propose, observe = statistics.median(steps.propose), statistics.median(steps.observe)
        yield {
            "draft": name,
            "temperature": temperature,
            "nodes": statistics.mean(steps.nodes),
            "tokens_per_step": statistics.mean(steps.tokens),
            "forward_ms": 1000 * forward,
            "propose_ms": 1000 * propose,
            "observe_ms": 1000 * observe,
            "forwards": (propose + observe) / forward,
        }


def answer(engine: TransformersEngine, name: str, temperature: float, steps: Steps, prompt: Sequence[int]) -> None:
    """Answer a prompt by a method, and note what its steps took."""
    target = engine.target(temperature, SEED)
    target.score = timed(target.score, steps.forward)  # type: ignore[method-assign]
    drafter, budget = None, None
    if name in SHAPES:
        assert engine.heads is not None, "the speculator is there"
        shape, most = SHAPES[name]
        drafter, budget = HeadsDrafter(engine.heads(target), shape), FixedBudget(most)
        drafter.propose = timed(drafter.propose, steps.propose)  # type: ignore[method-assign]
        drafter.observe = timed(drafter.observe, steps.observe)  # type: ignore[method-assign]
    answered = decode(target, drafter, prompt, max_new_tokens=NEW_TOKENS, budget=budget)
    next(answered)  # the prefill
    for step in answered:
        steps.nodes.append(len(step.draft))
        steps.tokens.append(len(step.tokens))


def timed(function: F, seconds: list[float]) -> F:
    """Note how long each call takes: seconds of this thread, in which other programs have no part."""

    @wraps(function)
    def call(*args: Any) -> Any:
        started = time.thread_time()
        found = function(*args)
        seconds.append(time.thread_time() - started)
        return found

    return cast(F, call)


if __name__ == "__main__":
    run(main)
