"""What outlives an answer: earlier answers, a background corpus, and what the mixer has learned."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretoken.drafters import kernels
from foretoken.drafters.background import Background
from foretoken.drafters.kernels import Frozen, Ints, Weights
from foretoken.drafters.store import TokenStore

ANSWERS_MAX_BYTES = 128 * 2**20
NAMED_CONTEXTS = 2**16  # of which the memory keeps what the target named


class Memory:
    """Everything that the drafters of one namespace share; two namespaces share nothing but the background corpus.

    Several threads may draft from one memory.

    Args:
        background: A background corpus, or None.
        max_bytes: The most that the statistics of earlier answers may take; the older half is forgotten beyond it.
        weights: What the mixer starts from; what comes with the package where None.
    """

    def __init__(
        self,
        background: Background | None = None,
        *,
        max_bytes: int = ANSWERS_MAX_BYTES,
        weights: Weights | None = None,
    ) -> None:
        self.lock = threading.Lock()
        self.answers = TokenStore(max_bytes=max_bytes)
        self.weights = weights or starting_weights(background is not None)
        self.frozen = _frozen(background)
        self.recycled = kernels.NOTHING_RECYCLED
        self.votes, self.growth = kernels.room_for_votes(), kernels.room_for_growth(16)

    def add(self, answer: Sequence[int] | Ints) -> None:
        """Remember the tokens of an answer."""
        with self.lock:
            self.answers.extend(answer)
            self.answers.end_sequence()

    def recycle(self) -> None:
        """Keep what the target's logits name from now on, where that is not done yet."""
        with self.lock:
            if self.recycled is kernels.NOTHING_RECYCLED:
                self.recycled = kernels.room_for_recycled(NAMED_CONTEXTS)

    def make_room(self, max_tokens: int) -> None:
        """Let drafts have up to ``max_tokens`` nodes."""
        if max_tokens > self.growth.probs.size:
            self.growth = kernels.room_for_growth(max_tokens)

    def use(self, background: Background) -> None:
        """Draft from this background corpus from now on, and weigh its votes from the start."""
        with self.lock:
            self.frozen, self.weights = _frozen(background), starting_weights(True)


def starting_weights(with_background: bool) -> Weights:
    """A copy of what ``scripts/learn_weights.py`` learned, with or without a background corpus."""
    name, arrays = "background" if with_background else "alone", _learned()
    return _weights(*(arrays[f"{name}_{part}"] for part in ("prob", "seen", "weight")))


@cache  # a request that remembers nothing has a memory of its own
def _learned() -> dict[str, NDArray[Any]]:
    with as_file(files("foretoken.drafters") / "weights.npz") as path, np.load(path) as arrays:
        return dict(arrays)


def untrained_weights() -> Weights:
    """Where learning begins: a vote is believed as its counts say, and longer contexts a little more."""
    counts = np.array([0, 1, 2, 3.5, 6.5, 12, 30, 80])
    order = np.arange(1, kernels.ORDERS + 1)[:, None, None, None]
    count, other, latest = counts[:, None, None], counts[:, None], np.array([0, 1])
    prob = (count + 0.3 * latest + 0.1) / (count + other + 1.2) * (0.35 + 0.06 * order)
    prob = np.broadcast_to(np.clip(prob, 0.005, 0.98), (kernels.KINDS, kernels.ORDERS, 8, 8, 2)).copy()
    named = np.array([0.01, 0.04, 0.1, 0.24, 0.47, 0.72, 0.9, 0.98])  # what the target said of a token last time
    prob[kernels.RECYCLED] = (named[:, None, None] * (0.5 + 0.1 * order)).clip(0.005, 0.98)
    weight = np.zeros((kernels.SETS, kernels.SLOTS))
    weight[-1], weight[-1, -1] = 0.18, -3.2
    return _weights(prob.ravel(), np.zeros(kernels.KEYS), weight)


def _weights(prob: NDArray[Any], seen: NDArray[Any], weight: NDArray[Any]) -> Weights:
    table = np.stack([prob, np.log(prob / (1 - prob)), seen], axis=1)
    return Weights(table.astype(np.float32), weight.astype(np.float32))


def _frozen(background: Background | None) -> Frozen:
    """The arrays of a corpus as the kernels take them: plain, read-only."""
    if background is None:
        index, rows = np.zeros(3, np.uint32), np.zeros((0, 2), np.uint32)
    else:
        index, rows = np.asarray(background.index), np.asarray(background.rows)
    index.flags.writeable = rows.flags.writeable = False
    return Frozen(index, rows)
