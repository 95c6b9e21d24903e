"""Drafts from arrays as another thread may leave them: each number as it was before some writes, or after.

Run without numba's compiler, so that NumPy checks every index.
"""

from __future__ import annotations

import random
import sys
import warnings
from typing import Any, TypeVar

import numpy as np

from foretoken.core.contracts import Scores, Step, Top
from foretoken.drafters import NgramMixer, ngram
from foretoken.ngrams import arrays, kernels, store
from foretoken.ngrams.shared import SharedNgrams

T = TypeVar("T", bound=tuple[Any, ...])

VOCABULARY = 5
TOKENS = range(VOCABULARY)


def structured(module: Any, function: str, *names: str) -> None:
    """Let a function give structured arrays whose fields are attributes, which they are only where it is compiled."""
    original = getattr(module, function)

    def changed(*arguments: Any) -> Any:
        made = original(*arguments)
        return made._replace(**{name: getattr(made, name).view(np.recarray) for name in names})

    setattr(module, function, changed)


def refuse_negative(function: str) -> None:
    """Let no negative number reach a function: NumPy would take what it leads to for an index from the end."""
    original = getattr(kernels, function)

    def checked(number: Any) -> Any:
        assert number >= 0, f"{function}({number})"
        return original(number)

    setattr(kernels, function, checked)


class Named(Scores):
    """Scores of a target that names any tokens."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def choose(self, row: int) -> int:
        return self.chance.choice(TOKENS)

    def top(self, rows: Any, k: int) -> Top:
        return Top([self.chance.choices(TOKENS, k=k) for _ in rows], [[0.5] * k for _ in rows])


def torn(before: T, after: T, chance: np.random.Generator) -> T:
    """Each number of some arrays as it was before or after; arrays that were replaced meanwhile as they were."""
    arrays = []
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape:
            return before
        if old.dtype.names:
            mixed = new.copy()
            for name in old.dtype.names:
                mixed[name] = np.where(chance.random(old.shape) < 0.5, old[name], new[name])
        else:
            mixed = np.where(chance.random(old.shape) < 0.5, old, new)
        arrays.append(mixed)
    return type(before)(*arrays)  # type: ignore[misc]


def copied(arrays: T) -> T:
    return type(arrays)(*(array.copy() for array in arrays))  # type: ignore[misc]


def answer(memory: SharedNgrams, chance: random.Random) -> None:
    """Another thread's answer: it drafts, learns, names, and is kept."""
    drafter = NgramMixer(memory, recycle=True)
    drafter.begin(chance.choices(TOKENS, k=8))
    for _ in range(3):
        draft = drafter.propose([], 4)
        drafter.observe(Step(draft, tuple(chance.choices(TOKENS, k=2)), Named(chance)))
    memory.add(chance.choices(TOKENS, k=chance.randrange(1, 30)))


def main(seeds: int) -> None:
    warnings.simplefilter("ignore")  # scalars say where they wrap
    structured(store, "_empty", "nodes")
    structured(arrays, "room_for_votes", "candidates")
    structured(arrays, "room_for_growth", "guesses")
    structured(arrays, "room_for_recycled", "successors")
    ngram._ROOM = ngram._Room()
    arrays.NOTHING_RECYCLED = arrays.room_for_recycled(0)
    refuse_negative("few")
    drafted = 0
    for seed in range(seeds):
        chance, mixing = random.Random(seed), np.random.default_rng(seed)
        memory = SharedNgrams()
        for _ in range(chance.randrange(3)):
            answer(memory, chance)
        before = copied(memory.answers.trie), copied(memory.weights), copied(memory.recycled)
        answer(memory, chance)
        memory.answers.trie = torn(before[0], memory.answers.trie, mixing)
        memory.weights = torn(before[1], memory.weights, mixing)
        memory.recycled = torn(before[2], memory.recycled, mixing)
        reader = NgramMixer(memory, recycle=True, floor=0.0, trees=seed % 2 == 0)
        reader.begin(chance.choices(TOKENS, k=8))
        draft = reader.propose([], 8)
        drafted += len(draft)
        assert set(draft.tokens) <= {*TOKENS}, draft
        assert all(0 <= prob <= 1 for prob in draft.probs), draft
    assert drafted > seeds
    sys.stdout.write(f"{drafted} tokens drafted\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
