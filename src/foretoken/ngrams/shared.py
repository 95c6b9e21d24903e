"""What the answers of a namespace share: statistics of earlier ones, a background corpus and the mixer's weights."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from foretoken.ngrams import arrays
from foretoken.ngrams.arrays import Floats, Frozen, Ints, Weights
from foretoken.ngrams.background import Background
from foretoken.ngrams.store import TokenStore

ANSWERS_MAX_BYTES = 128 * 2**20
OBJECTS_BYTES = 2**14  # of a memory, besides its arrays


class SharedNgrams:
    """Everything that the answers of one namespace share; two namespaces share nothing but the background corpus.

    Any number of threads may use one. Drafting takes no lock: it reads the arrays as they stand, see ``kernels.py``.
    Learning and adding take turns, each with its own kind. It is small at first and grows with what is remembered.

    Attributes:
        lock: Held while the mixer learns from committed tokens, for microseconds.

    Args:
        background: A background corpus, or None.
        max_bytes: The most that the statistics of earlier answers may take; the older half is forgotten beyond it.
        weights: What the mixer starts from. If None, the weights that come with the package.
    """

    def __init__(
        self,
        background: Background | None = None,
        *,
        max_bytes: int = ANSWERS_MAX_BYTES,
        weights: Weights | None = None,
    ) -> None:
        self.lock = threading.Lock()
        self._adding = threading.Lock()
        self._max_bytes, self._given_weights = max_bytes, weights
        self._begin(background)
        _ALL.add(self)

    def _begin(self, background: Background | None) -> None:
        self.answers = TokenStore(0, self._max_bytes)
        self.weights = self._given_weights or starting_weights(background is not None)
        self.background, self.frozen = background, _frozen(background)
        self.recycled = arrays.NOTHING_RECYCLED

    @property
    def nbytes(self) -> int:
        """Bytes that this memory alone takes."""
        arrays = (self.weights.own, self.weights.place, *self.recycled)
        return OBJECTS_BYTES + self.answers.nbytes + sum(array.nbytes for array in arrays)

    def add(self, answer: Sequence[int] | Ints) -> None:
        """Remember the tokens of an answer."""
        with self._adding:
            self.answers.extend(answer)
            self.answers.end_sequence()

    def make_room_for_named(self, num_contexts: int) -> None:
        """Let the target name what follows so many further contexts; the lock is held by the caller."""
        old, used = self.recycled, int(self.recycled.entries[0, 0])
        if used + num_contexts <= len(old.entries) or len(old.entries) > arrays.NAMED_CONTEXTS:
            return
        grown = arrays.room_for_recycled(min(arrays.NAMED_CONTEXTS, max(used + num_contexts, used + used // 2)))
        grown.entries[:used], grown.successors[:used] = old.entries[:used], old.successors[:used]
        from foretoken.ngrams import kernels

        kernels.enter_all(grown)
        self.recycled = grown

    def make_room_to_learn(self) -> None:
        """Let more of the mixer's weights be learned; the lock is held by the caller."""
        capacity = len(self.weights.own)
        own = np.zeros((min(arrays.ROWS, capacity + capacity // 2 + 64), arrays.ROW), np.float32)
        own[:capacity] = self.weights.own
        self.weights = self.weights._replace(own=own, place=self.weights.place.copy())  # old places for old rows

    def use(self, background: Background) -> None:
        """Draft from this background corpus from now on, and weigh its votes from the start."""
        with self.lock:
            self.background, self.frozen, self.weights = background, _frozen(background), starting_weights(True)

    def after_fork(self) -> None:
        """Be of use to a forked child, in which no other thread goes on.

        What another thread of the parent was changing may be half changed, so that all of it is forgotten.
        """
        if self.lock.locked() or self._adding.locked():
            self._begin(self.background)
        self.lock, self._adding = threading.Lock(), threading.Lock()


_ALL: WeakSet[SharedNgrams] = WeakSet()


def _after_fork() -> None:
    for memory in list(_ALL):
        memory.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


@cache
def _learned(with_background: bool) -> Floats:
    """What ``scripts/learn_weights.py`` learned, with or without a background corpus: rows that all memories share."""
    name = "background" if with_background else "alone"
    with as_file(files("foretoken.ngrams") / "weights.npz") as path, np.load(path) as arrays:
        prob, seen, weight = (arrays[f"{name}_{part}"] for part in ("prob", "seen", "weight"))
    return _rows(prob, seen, weight)


def starting_weights(with_background: bool) -> Weights:
    """What comes with the package, to learn on from."""
    place = np.full(arrays.ROWS + 1, -1, np.int16)
    place[arrays.ROWS] = 0
    return Weights(_learned(with_background), np.empty((0, arrays.ROW), np.float32), place)


def untrained_weights() -> Weights:
    """Where learning begins: a vote is believed as its counts say, and longer contexts a little more."""
    counts = np.array([0, 1, 2, 3.5, 6.5, 12, 30, 80])
    order = np.arange(1, arrays.ORDERS + 1)[:, None, None, None]
    count, other, latest = counts[:, None, None], counts[:, None], np.array([0, 1])
    prob = (count + 0.3 * latest + 0.1) / (count + other + 1.2) * (0.35 + 0.06 * order)
    prob = np.broadcast_to(np.clip(prob, 0.005, 0.98), (arrays.KINDS, arrays.ORDERS, 8, 8, 2)).copy()
    named = np.array([0.01, 0.04, 0.1, 0.24, 0.47, 0.72, 0.9, 0.98])  # what the target said of a token last time
    prob[arrays.RECYCLED] = (named[:, None, None] * (0.5 + 0.1 * order)).clip(0.005, 0.98)
    weight = np.zeros((arrays.SETS, arrays.SLOTS))
    weight[-1], weight[-1, -1] = 0.18, -3.2
    return with_rows_of_its_own(_rows(prob.ravel(), np.zeros(arrays.KEYS), weight))


def with_rows_of_its_own(rows: Floats) -> Weights:
    """Weights that share no row."""
    place = np.arange(arrays.ROWS + 1, dtype=np.int16)
    return Weights(rows, rows.copy(), place)


def rows_now(weights: Weights) -> Floats:
    """A copy of all rows as they are now, [ROWS, ROW]."""
    rows, place = weights.start.copy(), weights.place[: arrays.ROWS]
    rows[place >= 0] = weights.own[place[place >= 0]]
    return rows


def sets_of(rows: Floats) -> Floats:
    """The weights of each set in the rows, [SETS, SLOTS]; a view."""
    return rows[: arrays.SETS, : arrays.SLOTS]


def table_of(rows: Floats) -> Floats:
    """For each strength of vote how often it was right, the same as a logit, and its tokens: [KEYS, 3]; a view."""
    return rows[arrays.SETS :].reshape(arrays.KEYS, 3)


def _rows(prob: NDArray[Any], seen: NDArray[Any], weight: NDArray[Any]) -> Floats:
    rows = np.zeros((arrays.ROWS, arrays.ROW), np.float32)
    table_of(rows)[:] = np.stack([prob, np.log(prob / (1 - prob)), seen], axis=1)
    sets_of(rows)[:] = weight
    return rows


def _frozen(background: Background | None) -> Frozen:
    """The arrays of a corpus as the kernels take them: plain, read-only."""
    if background is None:
        index, rows = np.zeros(3, np.uint32), np.zeros((0, 2), np.uint32)
    else:
        index, rows = np.asarray(background.index), np.asarray(background.rows)
    index.flags.writeable = rows.flags.writeable = False
    return Frozen(index, rows)
