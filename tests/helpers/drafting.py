"""Drafters for tests: ones that guess badly, cleverly, or as trees."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foretoken import Draft, Drafter, Scores, Step
from foretoken.core.contracts import FinishReason
from foretoken.drafters import RECIPES, DraftModel, Parts, Recipe


def verified(
    tokens: Sequence[int],
    draft: Draft | None = None,
    scores: Scores | None = None,
    finish_reason: FinishReason | None = None,
) -> Step:
    """The step that commits these tokens, of which all but the last were guessed."""
    draft, path = draft or Draft(), [-1]
    for token in tokens[:-1]:
        path.append(next(child for child in draft.children(path[-1]) if draft.tokens[child] == token))
    return Step(draft, tuple(tokens), scores, finish_reason, tuple(path[1:]))


# For a model that has no trained heads.
WITHOUT_HEADS = tuple(name for name, recipe in RECIPES.items() if "hidden" not in recipe.needs)


class Stateless:
    """A drafter without a memory."""

    def begin(self, prompt: Sequence[int]) -> None:
        pass

    def observe(self, step: Step) -> None:
        pass


class Siblings(Stateless):
    """Two guesses for the next token, and the second one's successor: a tree with chances."""

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        return Draft((context[-1], context[-4], context[-3]), (-1, -1, 1), (0.1, 0.6, 0.7)).select(
            range(min(3, max_tokens))
        )


class RandomTrees(Stateless):
    """Any tree at all: lossless must not depend on the guess being good."""

    def __init__(self, seed: int, vocab: int) -> None:
        self.random, self.vocab = random.Random(seed), vocab

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        size = self.random.randint(0, max_tokens)
        # Mostly tokens of the text, so that some guesses are right.
        tokens = [self.random.choice([self.random.randrange(self.vocab), *context[-4:]]) for _ in range(size)]
        return Draft(tuple(tokens), tuple(self.random.randint(-1, node - 1) for node in range(size)))


class Oracle(Stateless):
    """Knows the answer and hides it in a tree: the right path lies among wrong siblings, in shuffled order."""

    def __init__(self, seed: int, prompt: Sequence[int], answer: Sequence[int], vocab: int) -> None:
        self.random, self.text, self.vocab = random.Random(seed), [*prompt, *answer], vocab

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        tokens: list[int] = []
        parents: list[int] = []
        right = -1
        for token in self.text[len(context) :]:
            siblings = [token, (token + 1) % self.vocab][: 1 + self.random.randint(0, 1)]
            self.random.shuffle(siblings)
            if len(tokens) + len(siblings) > max_tokens:
                break
            parents += [right] * len(siblings)
            tokens += siblings
            right = len(tokens) - len(siblings) + siblings.index(token)
        return Draft(tuple(tokens), tuple(parents))


@dataclass(frozen=True)
class Making(Recipe):
    """Make a drafter of a test's own anew each time."""

    name = "made"
    kind: Any

    def make(self, parts: Parts) -> Drafter:
        return self.kind()


def named(name: str, draft_model: Any) -> str | Recipe:
    """The drafter of this name; the one that needs a smaller model gets this one."""
    return DraftModel(draft_model) if name == DraftModel.name else name
