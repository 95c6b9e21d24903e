"""Lookahead decoding as its paper tells it, in plain loops: no tree, no mask, one question to the model at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

Pool = dict[int, list[tuple[int, ...]]]  # token -> what followed it, the most recent last


class Moment(NamedTuple):
    """What one step did: the tokens that it committed, how many of them were guessed, and the pool after it."""

    tokens: list[int]
    num_accepted: int
    pool: Pool


def lookahead(
    next_token: Callable[[Sequence[int]], int],
    prompt: Sequence[int],
    initial: Sequence[int],
    *,
    window: int,
    ngram: int,
    guesses: int,
    text: bool,
) -> Iterator[Moment]:
    """Greedy lookahead decoding for ever (Fu et al., arXiv 2402.02057, section 3; the window moves by one a step).

    Args:
        next_token: The model's argmax after some tokens.
        prompt: Token ids.
        initial: The first guesses of level 0, for the window + ngram - 3 positions after the first new token.
        window: Columns of the window, W.
        ngram: Tokens of an n-gram with the one that it is found by, N; the window has N - 1 levels.
        guesses: The most n-grams kept for a token, and so verified in a step, G.
        text: Whether the pool also takes the n-grams of the prompt and of the answer.

    Yields:
        First the moment after the prompt was read, then one for each step.
    """
    pool: Pool = {}

    def remember(gram: Sequence[int]) -> None:
        grams = pool.setdefault(gram[0], [])
        if tuple(gram[1:]) in grams:
            grams.remove(tuple(gram[1:]))
        grams.append(tuple(gram[1:]))
        del grams[:-guesses]

    sequence: list[int] = []

    def commit(tokens: Sequence[int]) -> None:
        for token in tokens:
            sequence.append(token)
            if text and len(sequence) >= ngram:
                remember(sequence[-ngram:])

    def moment(tokens: list[int]) -> Moment:
        return Moment(tokens, len(tokens) - 1, {token: list(grams) for token, grams in pool.items()})

    commit(prompt)
    first = next_token(sequence)
    commit([first])
    yield moment([first])

    # levels[0][i] is a guess for column i + 1, since column 0 begins with the last token itself; levels[l][i] for
    # column i, where l > 0.
    levels = [list(initial)]
    while True:
        verified = [_verify(next_token, sequence, candidate) for candidate in pool.get(sequence[-1], [()])]
        columns = range(len(levels[0]) + 1) if window else ()
        results = [
            next_token([*sequence, *levels[0][:column], *(level[column] for level in levels[1:])]) for column in columns
        ]
        if len(levels) < ngram - 1 and window:  # warm-up: one more level
            levels = [level[1:] for level in levels] + [results[1:]]
        elif window:
            keys = [sequence[-1], *levels[0]]
            for column in columns:
                remember([keys[column], *(level[column] for level in levels[1:]), results[column]])
            levels = [*levels[1:], results]
            levels[0] = levels[0][1:]
        tokens = max(verified, key=len)
        commit(tokens)
        yield moment(tokens)


def _verify(next_token: Callable[[Sequence[int]], int], sequence: list[int], candidate: Sequence[int]) -> list[int]:
    """The tokens of a candidate up to where the model says something else, then the model's own."""
    right: list[int] = []
    for guess in candidate:
        if next_token([*sequence, *right]) != guess:
            break
        right.append(guess)
    return [*right, next_token([*sequence, *right])]
