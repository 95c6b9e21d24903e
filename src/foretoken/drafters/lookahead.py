"""Lookahead decoding: every forward carries a window of guesses, which yields n-grams to draft from.

Fu et al., "Break the Sequential Dependency of LLM Inference Using Lookahead Decoding" (arXiv 2402.02057). The window is
Jacobi iteration over the next few positions: each forward replaces its guesses by what the target says there. Most are
wrong where they stand, but phrases come out of it that the text soon needs. The mask that the paper draws for window
and n-grams is that of a tree, so that they are one ``Draft``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from foretoken.core.contracts import Need, Step
from foretoken.core.draft import Draft
from foretoken.core.errors import RequestError
from foretoken.core.numbers import whole
from foretoken.drafters.recipe import Parts, Recipe, option

SEED = 0  # of the window's first guesses
MAX_ROWS = 1024  # of a window
MAX_KEYS = 4096  # tokens that a pool knows n-grams of
PRIOR = 4  # guesses of a kind that count as tried before any was
PRIOR_GAIN = 0.025  # tokens that a column is taken to bring in a step; so measured on the bundled model
PRIOR_STEPS = 8  # steps that count as ridden before any was
FORGET = 0.005  # of what the window brought, each step, so that one that was given up is tried again


class Shape(NamedTuple):
    """How much rides along: the paper's W, N and G, and its settings for a 7B model on an A100.

    Args:
        window: Columns of the window, W; 0 for no window.
        ngram: Tokens of an n-gram with the one that it is found by, N; the window has N - 1 levels.
        guesses: The most n-grams kept for a token, and so verified in a step, G.
    """

    window: int = 15
    ngram: int = 5
    guesses: int = 15

    @property
    def num_rows(self) -> int:
        """Rows of the window, once it is full; its first cell is the last token's own row."""
        return self.window * (self.ngram - 1) - 1

    def check(self) -> None:
        """Refuse what cannot ride.

        Raises:
            ForetokenError: If a number is too small, or the window has more than ``MAX_ROWS`` rows.
        """
        for (name, number), least in zip(self._asdict().items(), (0, 2, 1), strict=True):
            whole(name, number, least)
        if self.num_rows >= MAX_ROWS:
            raise RequestError(
                f"A window of {self.window} columns for n-grams of {self.ngram} tokens adds {self.num_rows} rows to "
                f"every forward: make one of them smaller, so that there are fewer than {MAX_ROWS}."
            )


class Pool:
    """For each token the n-grams that began with it; of both, those not seen for longest are forgotten.

    Args:
        guesses: The most n-grams kept for a token.

    >>> pool = Pool(guesses=2)
    >>> for gram in ([4, 1, 7], [4, 2, 2], [4, 1, 7], [4, 3, 3]):
    ...     pool.add(gram, in_text=True)
    >>> pool.after(4)
    {(3, 3): True, (1, 7): True}
    """

    def __init__(self, guesses: int) -> None:
        self.guesses = guesses
        self._after: dict[int, dict[tuple[int, ...], bool]] = {}  # the most recent last, here and there

    def __len__(self) -> int:
        return sum(map(len, self._after.values()))

    def add(self, gram: Sequence[int], in_text: bool) -> None:
        """An n-gram was seen, in the text or by the window only."""
        token, rest = gram[0], tuple(gram[1:])
        grams = self._after.pop(token, {})
        grams[rest] = grams.pop(rest, False) or in_text
        self._after[token] = grams
        if len(grams) > self.guesses:
            del grams[next(iter(grams))]
        if len(self._after) > MAX_KEYS:
            del self._after[next(iter(self._after))]

    def after(self, token: int) -> dict[tuple[int, ...], bool]:
        """What followed a token, the most recent first, and whether it was seen in the text."""
        return dict(reversed(self._after.get(token, {}).items()))


class Guess(NamedTuple):
    """A node of the tree that n-grams with one first token make, sharing their beginnings.

    Args:
        token: The guessed token.
        parent: The node before it, or -1.
        depth: 1 for a child of the root.
        rank: How many of its siblings were seen more recently.
        in_text: Whether the text said so, and not the window only.
    """

    token: int
    parent: int
    depth: int
    rank: int
    in_text: bool

    @property
    def kind(self) -> tuple[bool, int, bool]:
        """What its chances go by: on ordinary text a depth beyond the first says no more, and these three say much."""
        return self.depth == 1, self.rank, self.in_text


class LookaheadDrafter:
    """Guess what followed the last token before, in the window or in the text.

    Whether the window rides in a step is the budget's choice.

    Args:
        window: See ``Shape``.
        ngram: See ``Shape``.
        guesses: See ``Shape``.
        text: Whether the n-grams of the prompt and of the answer are guesses too.

    Raises:
        ForetokenError: If a number is too small, or the window has more than ``MAX_ROWS`` rows.

    >>> drafter = LookaheadDrafter(window=2, ngram=3, guesses=2)
    >>> drafter.begin([4, 1, 7, 4, 1])
    >>> draft = drafter.propose([4, 1, 7, 4], max_tokens=7)
    >>> draft.tokens[: draft.num_guesses], draft.num_lookahead
    ((1, 7), 2)
    """

    def __init__(
        self,
        window: int = Shape().window,
        ngram: int = Shape().ngram,
        guesses: int = Shape().guesses,
        *,
        text: bool = True,
    ) -> None:
        self.shape, self.text = Shape(window, ngram, guesses), text
        self.shape.check()
        self._tried: dict[tuple[bool, int, bool], tuple[int, int]] = {}  # Guess.kind -> how many, how many right
        # Of late: steps that had the window in them, accepted tokens that it alone knew.
        self._rode = self._brought = 0.0
        self.begin(())

    @property
    def needs(self) -> frozenset[Need]:
        """The likeliest token of the window's rows."""
        return frozenset() if self.shape.window == 0 else frozenset({"top"})

    def begin(self, prompt: Sequence[int]) -> None:
        self.pool = Pool(self.shape.guesses)
        self._tail: list[int] = []
        self._guesses: list[Guess] = []
        # Column i holds guesses for i, i + 1, .. tokens after the last committed one, with which column 0 begins.
        # There is one level at first: each step of the warm-up adds one and uses up a column.
        width = self.shape.window + self.shape.ngram - 2 if prompt and self.shape.num_rows > 0 else 0
        self.columns = [[token] for token in random.Random(SEED).choices(prompt, k=width)] if width else []
        self._extend(prompt)

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        self._guesses = self._tree(context[-1], max_tokens)
        guesses = Draft(
            tuple(guess.token for guess in self._guesses),
            tuple(guess.parent for guess in self._guesses),
            tuple(self._prob(guess) for guess in self._guesses),
        )
        return self.beside(guesses, context[-1])

    def observe(self, step: Step) -> None:
        self._rode -= FORGET * self._rode
        self._brought -= FORGET * self._brought
        self._learn(step)
        if step.draft.num_lookahead:
            self._rode += 1
            self._advance(step)
        self._extend(step.tokens)

    def _extend(self, tokens: Sequence[int]) -> None:
        """Take the n-grams of the text, of which these are the next tokens."""
        if not self.text:
            return
        for token in tokens:
            self._tail = [*self._tail, token][-self.shape.ngram :]
            if len(self._tail) == self.shape.ngram:
                self.pool.add(self._tail, in_text=True)

    def _tree(self, token: int, max_tokens: int) -> list[Guess]:
        """What may follow a token: the most recent n-gram first, then what others add to it."""
        tree: list[Guess] = []
        nodes: dict[tuple[int, int], int] = {}  # parent and token -> node
        siblings: dict[int, int] = {}  # parent -> how many children
        for gram, in_text in self.pool.after(token).items():
            parent = -1
            for depth, guess in enumerate(gram, start=1):
                node = nodes.get((parent, guess))
                if node is not None:
                    tree[node] = tree[node]._replace(in_text=in_text or tree[node].in_text)
                elif len(tree) == max_tokens:
                    break
                else:
                    node = nodes[parent, guess] = len(tree)
                    rank = siblings.get(parent, 0)
                    siblings[parent] = rank + 1
                    tree.append(Guess(guess, parent, depth, rank, in_text))
                parent = node
        return tree

    def _prob(self, guess: Guess) -> float:
        """How often a guess of this kind was right, given that its parent was."""
        tried, right = self._tried.get(guess.kind, (0, 0))
        # About what was measured where PRIOR_GAIN was; what only the window said is right half as often.
        prior = (0.6 if guess.depth == 1 else 0.85) / (1 + guess.rank) ** 2 * (1.0 if guess.in_text else 0.5)
        return (PRIOR * prior + right) / (PRIOR + tried)

    def _learn(self, step: Step) -> None:
        """See which guesses were right, those also that the budget did not let be verified."""
        parent = -1
        for token in step.tokens:
            siblings = [node for node, guess in enumerate(self._guesses) if guess.parent == parent]
            for node in siblings:
                guess = self._guesses[node]
                tried, right = self._tried.get(guess.kind, (0, 0))
                self._tried[guess.kind] = tried + 1, right + (guess.token == token)
            parent = next((node for node in siblings if self._guesses[node].token == token), -1)
            if parent == -1:
                break
            guess = self._guesses[parent]
            self._brought += guess.depth <= step.num_accepted and not guess.in_text
        self._guesses = []

    def beside(self, guesses: Draft, last_token: int) -> Draft:
        """The guesses, and level by level the rows of the window.

        Level 0 is a chain that begins with the last token itself; each other level hangs below the one before.
        """
        if not self.columns:
            return guesses
        self.columns[0][0] = last_token
        width, levels = len(self.columns), len(self.columns[0])

        def node(level: int, column: int) -> int:
            return len(guesses) + level * width + column - 1 if level or column else -1

        cells = [(level, column) for level in range(levels) for column in range(width)][1:]
        gain = (PRIOR_STEPS * PRIOR_GAIN * width + self._brought) / (PRIOR_STEPS + self._rode)
        return Draft(
            guesses.tokens + tuple(self.columns[column][level] for level, column in cells),
            guesses.parents
            + tuple(node(level - 1, column) if level else node(0, column - 1) for level, column in cells),
            guesses.probs + (gain / len(cells),) * len(cells) if len(guesses.probs) == len(guesses) else (),
            num_lookahead=len(cells),
        )

    def _advance(self, step: Step) -> None:
        """Put what the target says after the last level into the window, and the columns that are full into the pool.

        The window goes on by one position a step, however many tokens were accepted: its guesses need not stand where
        they will be needed. To drop as many columns as tokens were accepted, and to begin as many anew, gave 2.71
        instead of 2.79 tokens a step over 48 answers of the bundled model; without the text's n-grams, over ten of
        those answers, 2.38 instead of 2.56.
        """
        assert step.scores is not None, "see needs"
        width = len(self.columns)
        tips = list(range(len(step.draft) + 1 - width, len(step.draft) + 1))
        if len(self.columns[0]) == 1:
            tips[0] = 0  # column 0 is the last token alone
        said = [int(tokens[0]) for tokens in step.scores.top(tips, 1).tokens]
        columns = [[*column, token] for column, token in zip(self.columns, said, strict=True)]
        if len(columns[0]) < self.shape.ngram:  # warm-up
            self.columns = columns[1:]
            return
        for column in columns:
            self.pool.add(column, in_text=False)
        self.columns = [column[1:] for column in columns]


@dataclass(frozen=True)
class Lookahead(Recipe):
    """Lookahead decoding: a window of guesses rides in every forward and brings n-grams to guess with.

    Args:
        window: Columns of the window, the paper's W; 0 for no window. It rides where it pays.
        ngram: Tokens of an n-gram, the paper's N.
        guesses: The most n-grams kept for a token, the paper's G.
        text: Whether the n-grams of the prompt and of the answer are guesses too.
    """

    name = "lookahead"
    calibrated = True
    needs = frozenset({"top"})
    window: int = option(Shape().window, least=0)
    ngram: int = option(Shape().ngram, least=2)
    guesses: int = option(Shape().guesses, least=1)
    text: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        Shape(self.window, self.ngram, self.guesses).check()

    def check(self, parts: Parts) -> None:
        super().check(parts)
        if not parts.target.supports_trees:
            raise RequestError(
                "This model takes no draft trees here, and the drafter 'lookahead' needs them: load it with the "
                "attention implementation sdpa or eager, or a GGUF file without exact, or use another drafter, which "
                "then drafts chains."
            )

    def make(self, parts: Parts) -> LookaheadDrafter:
        self.check(parts)
        self.prepare()
        return LookaheadDrafter(self.window, self.ngram, self.guesses, text=self.text)
