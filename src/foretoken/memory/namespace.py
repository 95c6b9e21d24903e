"""What is remembered for one caller: the statistics of earlier answers, and where new answers go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from foretoken.core.budget import AdaptiveBudget
from foretoken.core.costs import CostCurve
from foretoken.ngrams.arrays import Ints
from foretoken.ngrams.background import Background
from foretoken.ngrams.shared import OBJECTS_BYTES, SharedNgrams

MAX_WAITING = 64  # answers that are kept as they are until a drafter asks for their statistics


class Namespace:
    """The memory of one caller. It alone keeps answers; drafters read what it has.

    Statistics are made when a drafter first asks for them, so that an answer of a drafter that needs none neither
    compiles nor counts anything.

    Args:
        name: Its name. If None, it cannot be asked for again.
        background: A background corpus. If None, there is none yet; see ``use``.
        load: Called once with the new statistics, to add what earlier processes kept.
        write: Called with every answer that is kept, to write it where it outlives the process.
    """

    def __init__(
        self,
        name: str | None = None,
        background: Background | None = None,
        *,
        load: Callable[[SharedNgrams], None] | None = None,
        write: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        self.name = name
        self._background, self._load, self._write = background, load, write
        self._waiting: deque[Ints] = deque(maxlen=MAX_WAITING)
        self._budget: AdaptiveBudget | None = None

    @property
    def ngrams(self) -> SharedNgrams:
        """The statistics of earlier answers, and the mixer's weights."""
        if self._made is not None:
            return self._made
        new = SharedNgrams(self._background)
        # No lock, which a forked child might find held: of two threads, the first to store its object wins.
        made: SharedNgrams = self.__dict__.setdefault("ngrams made", new)
        if made is new:
            if self._background is not None and self._background is not new.background:  # it came meanwhile
                new.use(self._background)
            self._count_waiting(new)
            if self._load is not None:
                self._load(new)
        return made

    @property
    def _made(self) -> SharedNgrams | None:
        return self.__dict__.get("ngrams made")

    def new_budget(self, costs: CostCurve) -> AdaptiveBudget:
        """A budget for one answer: a copy of the one that was handed back last, or one that knows the costs alone."""
        last = self._budget
        return AdaptiveBudget(costs=costs) if last is None else last.copy()

    def hand_back(self, budget: AdaptiveBudget) -> None:
        """The answer of this budget has ended: the next one begins with what it has learned."""
        self._budget = budget

    @property
    def nbytes(self) -> int:
        """Bytes that this memory alone takes."""
        counted = OBJECTS_BYTES if self._made is None else self._made.nbytes
        return counted + sum(answer.nbytes for answer in list(self._waiting))

    def keep(self, answer: Sequence[int], own: SharedNgrams | None = None) -> None:
        """Remember a finished answer: in this process, and on disk where a history is kept.

        Args:
            answer: Its tokens.
            own: Statistics that its drafter alone has, as a ``NgramMixer`` of the caller's. They get the answer, too.
        """
        if own is not None and own is not self._made:
            own.add(answer)
        if self._made is not None or self._load is None:  # else it is loaded with those of earlier processes
            self._waiting.append(np.array(answer, np.int32))
        if self._made is not None:
            self._count_waiting(self._made)
        if self._write is not None:
            self._write(answer)

    def use(self, background: Background) -> None:
        """Draft from this background corpus from now on."""
        self._background = background
        if self._made is not None:
            self._made.use(background)

    def _count_waiting(self, ngrams: SharedNgrams) -> None:
        while self._waiting:
            try:
                answer = self._waiting.popleft()
            except IndexError:  # another thread was faster
                return
            ngrams.add(answer)
