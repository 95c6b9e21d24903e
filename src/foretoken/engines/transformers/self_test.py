"""Are a row's bits its own? A few forwards show it, which numbers of rows keep them so, and what that costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from foretoken.core.draft import Draft
from foretoken.core.errors import ModelError
from foretoken.engines.transformers.inputs import input_device
from foretoken.engines.transformers.scores import TransformersScores
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.engines.transformers.width_classes import width_classes
from foretoken.memory.self_tests import SelfTest

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32, 48, 64)  # rows
FIRST = (16, 8, 4, 32, 12, 2, 24, 6, 64, 3, 5, 7, 10, 20, 48, 9, 14)  # in which order, should there be no time for all
ENOUGH = 16  # rows that a forward must take if drafts are to pay
MAX_SECONDS = 0.5
PROMPT, ROWS = 24, 6  # tokens; how many are scored one by one, to compare with
COSTED = 16  # times as many tokens stand before a step whose time is taken
TURNS, MORE_TURNS = 6, 24  # plain steps of either kind, and where the costs are too near to tell
NEAR = 0.03, 1.0  # such costs
# How far logits may be from those of the model's own attention, as a share of their size: some roundings of the dtype.
# "eager" rounds scores as well, of which 8 were seen in bfloat16; in float32 2e-6 was.
MAX_ROUNDINGS, MIN_DEVIATION = 12, 1e-4


@dataclass(frozen=True)
class FixedWidths:
    """Numbers of rows that a forward may have, taken as they are."""

    allowed: tuple[int, ...]

    def widths(self) -> tuple[int, ...]:
        return self.allowed


@torch.inference_mode()
def self_test(model: PreTrainedModel, max_seconds: float = MAX_SECONDS) -> SelfTest:
    """Try whether the model gives a row the same logits, to the last bit, in forwards over several numbers of rows.

    All the model's products and activations are tried with every number of rows. Whole forwards then show that nothing
    else of the model depends on it: the rows that are compared stand first in a chain, and last in a tree whose other
    branches are wrong. Where there is no time for all, the numbers that were not tried are trusted as long as no other
    one failed.

    Args:
        model: A decoder-only model whose attention ``refuse_attention`` does not refuse.
        max_seconds: When to begin with no further number of rows. One is tried in any case.

    Raises:
        ForetokenError: If the model's attention is not what was computed in its place, or its context is too short.
    """
    clock = _clock(model)
    ends_at = clock() + max_seconds
    classes = width_classes(model, WIDTHS)
    base = next((width for width in WIDTHS if max(classes[width], default=0) >= ENOUGH), 0)
    if not base:
        return SelfTest(WIDTHS, (), 0, 0, 0.0)
    trial = _Trial(model)
    plain = trial.plain(base)
    trial.check_attention(plain)
    allowed = {width for width in classes[base] if width >= base and trial.has_room(width)}
    tested, failed, equal, rows = [base], set(), 0, 0
    for width in FIRST:
        if width not in allowed or width == base or (rows and ends_at - clock() < trial.seconds_a_row * width):
            continue
        compared = [torch.equal(row, plain[i]) for i, row in trial.among(width)]
        tested.append(width)
        equal, rows = equal + sum(compared), rows + len(compared)
        failed |= set() if all(compared) else {width}
    widths = set(tested) - failed if failed else allowed
    return SelfTest(tuple(sorted(tested)), tuple(sorted(widths)), equal, rows, trial.cost(base))


class _Trial:
    """A model with a short text, and how it is decoded exactly."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self._clock = model, _clock(model)
        self.today = TransformersTarget(model)
        vocab = self.today.vocab_size
        self.text = [(7919 * i + 13) % vocab for i in range(PROMPT + ROWS)]
        self.wrong = (self.text[-1] + 1) % vocab
        self.seconds_a_row = 0.0  # of the forwards over several rows
        self.today.prefill(self.text[:PROMPT])
        if not self.has_room(ENOUGH):
            raise ModelError(f"The context of {type(model).__name__} is too short for its rows to be compared.")

    def has_room(self, width: int) -> bool:
        """Whether a chain of so many rows fits behind the prompt."""
        depth = self.today.max_draft_depth
        return depth is None or width <= depth

    def target(self, width: int) -> TransformersTarget:
        """A target that has read the prompt and whose forwards have this number of rows."""
        target = TransformersTarget(self.model, exact=FixedWidths((width,)))
        target.prefill(self.text[:PROMPT])
        return target

    def plain(self, width: int) -> list[Tensor]:
        """The logits after each token that follows the prompt, scored one by one; each [vocab]."""
        target, logits = self.target(width), []
        for token in self.text[PROMPT:]:
            logits.append(_logits(target, token, Draft())[0])
            target.keep(())
        return logits

    def among(self, width: int) -> Iterator[tuple[int, Tensor]]:
        """Rows of forwards over several, each with how many tokens after the prompt it stands."""
        first, *rest = self.text[PROMPT:]
        right = rest[: width - 1]
        target = self.target(width)
        started = self._clock()
        chain = _logits(target, first, Draft.chain([*right, *[self.wrong] * (width - 1 - len(right))]))
        self.seconds_a_row = 2 * (self._clock() - started) / width
        yield from enumerate(chain[: 1 + len(right)])
        target.keep(())
        if target.supports_trees and right:
            others = width - 1 - len(right)
            nodes = range(others, others + len(right))
            parents = [-1] * (others + 1) + [node - 1 for node in nodes[1:]]
            tree = _logits(target, rest[0], Draft((self.wrong,) * others + (*right[1:], self.wrong), tuple(parents)))
            yield 1, tree[0]
            yield from ((2 + i, tree[1 + others + i]) for i in range(len(right) - 1))

    def check_attention(self, exact: list[Tensor]) -> None:
        """Refuse attention that is more than what was computed in its place.

        Raises:
            ForetokenError: If logits are not those of the model's own attention, but for rounding.
        """
        most = max(MAX_ROUNDINGS * torch.finfo(exact[0].dtype).eps, MIN_DEVIATION)
        for token, logits in zip(self.text[PROMPT:], exact, strict=True):
            own = _logits(self.today, token, Draft())[0].double()
            self.today.keep(())
            if not float((logits - own).norm()) <= most * float(own.norm()):
                raise ModelError(
                    f"The attention of {type(self.model).__name__} is more than what can be computed row by row."
                )

    def cost(self, width: int) -> float:
        """What exactness adds to a plain step, as a share of it: the least times of both, taken in turns."""
        exact, least, clock = self.target(width), [math.inf, math.inf], self._clock
        self.today.rewind(PROMPT)
        room = self.today.max_draft_depth
        times = COSTED if room is None else max(1, min(COSTED, (PROMPT + room) // PROMPT - 1))
        for target in (self.today, exact):
            _lengthen(target, times)
        for turn in range(TURNS + MORE_TURNS):
            for i, target in enumerate((self.today, exact)):
                started = clock()
                target.score(self.wrong, Draft()).choose(0)
                target.rewind(times * PROMPT)
                least[i] = min(clock() - started, least[i])
            if turn >= TURNS and not NEAR[0] < least[1] / least[0] - 1 < NEAR[1]:
                break
        return least[1] / least[0] - 1


def _lengthen(target: TransformersTarget, times: int) -> None:
    """Let the cache hold its text several times over, without a forward: as long as that, but of no meaning."""
    text = target.ids[0].tolist()
    for layer in target.cache.states.layers:
        if isinstance(layer, DynamicLayer) and layer.is_initialized:
            assert layer.keys is not None and layer.values is not None
            layer.keys, layer.values = layer.keys.repeat(1, 1, times, 1), layer.values.repeat(1, 1, times, 1)
    target.cache.append(text * (times - 1))


def _clock(model: PreTrainedModel) -> Callable[[], float]:
    """What to take times by: the thread's own time where the processor computes, since others may use it, too.

    Threads that help wait in a loop of their own, whose time says nothing.
    """
    return time.thread_time if input_device(model).type == "cpu" else time.perf_counter


def _logits(target: TransformersTarget, token: int, draft: Draft) -> Tensor:
    scores = target.score(token, draft)
    assert isinstance(scores, TransformersScores)
    return scores.logits
