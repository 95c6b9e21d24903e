"""N-gram drafting: every context votes for what followed it, and a learned mixer weighs the votes.

Context mixing, as in the best compressors (Mahoney, "Adaptive weighing of context models for lossless data
compression", 2005), applied to drafting. Five kinds of votes for the next token:

- each context of 1 to 8 tokens of this sequence, prompt and answer, for its successors;
- the same of earlier answers, shared by all sequences of a namespace;
- contexts of 1 to 5 tokens of a background corpus;
- an earlier place where the text read the same except for its last 1 to 3 tokens, as after an edit;
- where it recycles, the tokens that the target's logits named the last time that it scored a row after the same context
  of 1 to 4 tokens, rejected and lookahead rows too: token recycling (arXiv 2408.08696) as evidence among the rest.

A vote's strength is looked up by its kind and order, the counts of the token and of its competitors, and whether it is
the latest; how often such votes were right is learned. A logistic mixer, its weights chosen by the longest contexts
that the stores knew at all and for this token, turns the votes for a token into a probability, and learns from every
committed token. The draft is the tree of the most probable paths, or the chain of most probable tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from foretoken.core.contracts import Drafter, Need, Step
from foretoken.core.draft import Draft
from foretoken.drafters.recipe import Parts, Recipe, option
from foretoken.ngrams import arrays
from foretoken.ngrams.arrays import NAMED, WIDTH, WINDOW, Floats, Growth, Ints
from foretoken.ngrams.shared import SharedNgrams
from foretoken.ngrams.store import TokenStore

TREE_FLOOR, CHAIN_FLOOR = 0.0285, 0.009
LEAST_FLOOR = 0.003  # where rows cost nothing: a draft takes time, too
MOST_UNREAD = 16  # committed tokens that nothing was learned from yet
TEXT_WIDTH = 4  # children of a node where only the text speaks for them; the fifth is seldom worth its row


class NgramMixer:
    """Drafts the most probable continuations, each node with a probability that means what it says.

    It reads earlier answers and adds none: the caller, who has the whole answer, adds it with ``SharedNgrams.add``.

    Args:
        memory: What it shares with other sequences. If None, it has a memory of its own.
        references: Documents, as tokens, that the answer may quote or edit (LLMA, arXiv 2304.04487).
        trees: Whether to draft trees; for a target that verifies only chains, a chain made as one is longer.
        floor: The least probability of a path that is worth a node; by default 0.0285 in a tree and 0.009 in a chain,
            about what one more row of a forward costs on a CPU.
        rate: How fast the mixer's weights learn.
        price: What one more row costs, as a share of a forward over one, or None while nobody knows; asked when a
            sequence begins. Where rows are cheaper than ``floor`` it is lowered.
        recycle: Whether to draft also from the tokens that the target's logits rank highest.

    >>> drafter = NgramMixer()
    >>> drafter.begin([1, 2, 3, 4, 1, 2, 3])
    >>> drafter.propose([1, 2, 3, 4, 1, 2, 3], 1).tokens
    (4,)
    """

    calibrated = True  # so that a budget can count on the probabilities of one that a caller gives

    def __init__(
        self,
        memory: SharedNgrams | None = None,
        *,
        references: Sequence[Sequence[int]] = (),
        trees: bool = True,
        floor: float | None = None,
        rate: float = 0.01,
        price: Callable[[], float | None] = lambda: None,
        recycle: bool = False,
    ) -> None:
        self.memory = memory or SharedNgrams()
        self.recycle = recycle
        self.references = references
        self.width = 1 if not trees else WIDTH if recycle else TEXT_WIDTH
        self.floor = self._most_floor = floor if floor is not None else TREE_FLOOR if trees else CHAIN_FLOOR
        self.rate, self.price = rate, price
        self._start([], ())  # references are counted once a prompt comes

    @property
    def needs(self) -> frozenset[Need]:
        """The likeliest tokens of all rows, if it recycles them."""
        return frozenset({"top"}) if self.recycle else frozenset()

    def begin(self, prompt: Sequence[int]) -> None:
        price = self.price()
        if price is not None:
            self.floor = min(self._most_floor, max(LEAST_FLOOR, price))
        self._start(prompt, self.references)

    def _start(self, prompt: Sequence[int], references: Sequence[Sequence[int]]) -> None:
        self._local = TokenStore(len(prompt) + sum(map(len, references)) + 512)
        for document in references:
            self._local.extend(document)
            self._local.end_sequence()
        self._local.extend(prompt)
        self._window = np.full(WINDOW, -1, np.int32)
        last = prompt[-WINDOW:]
        self._window[WINDOW - len(last) :] = last
        self._asked = True  # whether the step's scores are worth their time: not while the budget pauses
        self._unread: list[int] = []  # committed tokens that nothing was learned from yet

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        from foretoken.ngrams import kernels

        self._learn()
        growth, self._asked = _ROOM.for_drafts(max_tokens), True
        num = kernels.draft(self._window, max_tokens, self.width, self.floor, *self._arrays())
        (tokens, parents), probs = growth.nodes[:, :num].tolist(), growth.probs[:num].tolist()
        return Draft(tuple(tokens), tuple(parents), tuple(probs))

    def chances(self, paths: Ints, named: Ints) -> Floats:
        """How likely some tokens are after the committed text and a path of guesses.

        Args:
            paths: int32 [rows, length].
            named: int32 [rows, k].

        Returns:
            float32 [rows, k + 1]: of each named token, 0 where no vote is for it; then of all tokens without a vote.
        """
        from foretoken.ngrams import kernels

        self._learn()
        self._asked = True
        probs = np.empty((len(named), named.shape[1] + 1), np.float32)
        kernels.chances(self._window, paths, named, probs, *self._arrays())
        return probs

    def observe(self, step: Step) -> None:
        # While the budget pauses nobody asks, and many tokens take hardly longer than one.
        before = self._window.copy() if self._asked else None  # propose has learned from all before it
        self._unread += step.tokens
        if self._asked or step.finish_reason is not None or len(self._unread) >= MOST_UNREAD:
            self._learn()
        if self.recycle and before is not None:
            self._recycle(before, step)
        self._asked = False

    def _learn(self) -> None:
        """Learn from the committed tokens, and append them to the local store."""
        from foretoken.ngrams import kernels

        if not self._unread:
            return
        new, memory = np.array(self._unread, np.int32), self.memory
        self._unread = []
        with memory.lock:
            while (done := kernels.observe(self._window, new, self.rate, *self._arrays())) < new.size:
                new = new[done:]
                if self._local.is_full:
                    self._local.make_room(new.size)
                else:
                    memory.make_room_to_learn()

    def _recycle(self, before: Ints, step: Step) -> None:
        """Keep what the target named after every row of the step, whose row 0 stands after the window ``before``."""
        from foretoken.ngrams import kernels

        assert step.scores is not None, "see needs"
        draft, memory = step.draft, self.memory
        accepted = np.zeros(len(draft), np.int32)
        accepted[list(step.path)] = 1
        top = step.scores.top(range(1 + len(draft)), NAMED)
        rows = (np.array(draft.tokens, np.int32), np.array(draft.parents, np.int32), accepted)
        named = (np.asarray(top.tokens, np.int32), np.asarray(top.probs, np.float32))
        windows = _ROOM.for_drafts(len(draft)).windows
        with memory.lock:
            memory.make_room_for_named(arrays.NAMED_ORDERS * (1 + len(draft)))
            kernels.recycle(before, *rows, *named, windows, *memory.recycled)  # type: ignore[arg-type]

    def _arrays(self) -> tuple[Any, ...]:
        """What a kernel reads. Each tuple is taken once, so that its arrays belong together."""
        memory = self.memory
        recycled = memory.recycled if self.recycle else arrays.NOTHING_RECYCLED
        stores = (*self._local.trie, *memory.answers.trie, *memory.frozen, *recycled)
        return (*stores, *memory.weights, *_ROOM.votes, *_ROOM.growth)


class _Room(threading.local):
    """What a thread works in; all drafters share it, so that it stays in the processor's cache."""

    def __init__(self) -> None:
        self.votes, self.growth = arrays.room_for_votes(), arrays.room_for_growth(16)

    def for_drafts(self, max_tokens: int) -> Growth:
        """Room for a draft of up to so many nodes."""
        if max_tokens > self.growth.probs.size:
            self.growth = arrays.room_for_growth(max_tokens)
        return self.growth


_ROOM = _Room()


@cache
def compile_loops(recycle: bool) -> None:
    """Compile the loops, or load them from the disk, so that no answer's time has that in it.

    Takes some seconds where none has been compiled. Without ``recycle``, what only recycling calls is left out.
    """
    from foretoken.ngrams import kernels

    drafter = NgramMixer()
    drafter.begin([0])
    drafter.observe(Step(drafter.propose([0], 1), (0,), None, None))
    if recycle:
        nothing, window = np.zeros(0, np.int32), np.full(WINDOW, -1, np.int32)  # after no token nothing is kept
        named, recycled = (np.zeros((1, NAMED), np.int32), np.zeros((1, NAMED), np.float32)), arrays.NOTHING_RECYCLED
        kernels.recycle(window, nothing, nothing, nothing, *named, _ROOM.growth.windows, *recycled)  # type: ignore[arg-type]
        kernels.enter_all(recycled)


@cache
def compile_chances() -> None:
    """The same for what a drafter needs that only asks for chances."""
    compile_loops(recycle=False)
    NgramMixer().chances(np.zeros((1, 0), np.int32), np.zeros((1, 1), np.int32))


@dataclass(frozen=True)
class Ngram(Recipe):
    """The n-gram core: the text, earlier answers, references and a corpus vote for the next token.

    Args:
        floor: The least probability of a path that is worth a node. If None, about what one more row of a forward
            costs.
        rate: How fast the mixer's weights learn.
    """

    name = "ngram"
    calibrated = True
    remembers = True
    recycle: ClassVar[bool] = False
    floor: float | None = option(None, least=0.0)
    rate: float = option(0.01, least=0.0)

    def prepare(self) -> None:
        super().prepare()
        compile_loops(self.recycle)

    def make(self, parts: Parts) -> Drafter:
        return self.mixer(parts)

    def mixer(self, parts: Parts) -> NgramMixer:
        """The n-gram core alone."""
        self.prepare()
        return NgramMixer(
            parts.ngrams(),
            references=parts.references,
            trees=parts.target.supports_trees,
            floor=self.floor,
            rate=self.rate,
            price=parts.costs.row_price,
            recycle=self.recycle,
        )
