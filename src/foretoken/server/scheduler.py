"""Many requests, one model: a thread of its own steps their answers in turns.

The thread alone touches the model, its tokenizer and the namespaces. It knows nothing of HTTP: a request is a generator
whose first item comes from reading and checking it, and every further one from a forward; it returns the last one. So a
bad request is refused soon, whatever waits, and an answer is stopped by closing its generator.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

MAX_ACTIVE = 4
MAX_QUEUE = 64
SECONDS = 600.0  # of a request, in the queue and after
FORGET = 0.1  # of the mean time of an answer, with each answer


class QueueFull(Exception):
    """There are as many requests as may wait.

    Args:
        retry_after: Seconds after which there may be room.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class Stopped(Exception):
    """The request was cancelled, or the scheduler is closed."""


class Ticket:
    """A request's place in the scheduler.

    Args:
        owner: Who asks. Owners get equal shares of the forwards.
        work: Gives the request's items, and returns the last. It runs in the scheduler's thread, and is closed there.
        deliver: Gets every item, in that thread.
        end: Called once, in that thread, when there are no more items: with None if the work is done; with its error,
            ``Stopped`` or ``TimeoutError``.
    """

    def __init__(
        self,
        owner: str,
        work: Generator[Any, None, Any],
        deliver: Callable[[Any], None],
        end: Callable[[Exception | None], None],
    ) -> None:
        self.owner, self.work, self.deliver, self.end = owner, work, deliver, end
        self.cancelled = False
        self.arrived_at = time.monotonic()


class Turns:
    """Tickets whose owners take turns, and so do the tickets of each owner."""

    def __init__(self) -> None:
        self._by_owner: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._num = 0

    def __len__(self) -> int:
        return self._num  # which other threads may read

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for tickets in self._by_owner.values() for ticket in tickets)

    @property
    def owners(self) -> list[str]:
        """Those who have tickets; the one whose turn it is comes first."""
        return list(self._by_owner)

    def count(self, owner: str) -> int:
        """How many tickets an owner has."""
        return len(self._by_owner.get(owner, ()))

    def add(self, ticket: Ticket) -> None:
        """Let a ticket be the owner's last."""
        self._by_owner.setdefault(ticket.owner, deque()).append(ticket)
        self._num += 1

    def discard(self, ticket: Ticket) -> None:
        """Take a ticket out, if it is in."""
        tickets = self._by_owner.get(ticket.owner, deque())
        if ticket not in tickets:
            return
        tickets.remove(ticket)
        self._num -= 1
        if not tickets:
            del self._by_owner[ticket.owner]

    def pop(self, owner: str | None = None) -> Ticket:
        """Take out the ticket whose turn it is, of this owner if one is named; the turn passes on."""
        ticket = self.next(owner)
        self.discard(ticket)
        return ticket

    def next(self, owner: str | None = None) -> Ticket:
        """The ticket whose turn it is, of this owner if one is named; the turn passes on."""
        owner = owner or next(iter(self._by_owner))
        self._by_owner.move_to_end(owner)
        tickets = self._by_owner[owner]
        tickets.rotate(-1)
        return tickets[-1]


class Scheduler:
    """Runs requests in turns, one forward at a time.

    At most ``max_active`` requests have begun at once, each with a cache of its own. A free place goes to the owner who
    has the fewest of them. Of those that have begun, each owner gets a forward in turn, however many answers it has
    running. A request is checked between two forwards, before it waits.

    Args:
        max_active: The most requests that have begun and not ended.
        max_queue: The most requests that wait to begin.
        seconds: How long a request may take in all, its wait with it.
    """

    def __init__(self, max_active: int = MAX_ACTIVE, max_queue: int = MAX_QUEUE, seconds: float = SECONDS) -> None:
        self.max_active, self.max_queue, self.seconds = max_active, max_queue, seconds
        self._changed = threading.Condition()
        self._arrived = Turns()
        self._num_alive = 0  # tickets that have not ended
        self._closed = False
        self._waiting, self._active = Turns(), Turns()  # the thread's own
        self._mean_seconds = 1.0  # of an answer, of late
        self._thread = threading.Thread(target=self._run, name="foretoken-scheduler")

    @property
    def num_running(self) -> int:
        """How many requests have begun and not ended."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """How many requests wait to begin."""
        return max(0, self._num_alive - len(self._active))

    def start(self) -> None:
        """Begin to run requests."""
        self._thread.start()

    def close(self) -> None:
        """Take no more requests, finish those that there are, and return then."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, ticket: Ticket) -> None:
        """Let a request be run.

        Raises:
            QueueFull: If as many wait as may.
            Stopped: If the scheduler is closed.
        """
        with self._changed:
            if self._closed:
                raise Stopped
            if self._num_alive >= self.max_active + self.max_queue:
                raise QueueFull(max(1, math.ceil(self._mean_seconds * self.max_queue / self.max_active)))
            self._num_alive += 1
            self._arrived.add(ticket)
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """End a request before its next forward. One that has ended stays so."""
        with self._changed:
            ticket.cancelled = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._num_alive > 0 or self._closed)
                if self._num_alive == 0:
                    return
                arrived = self._arrived.pop() if self._arrived else None
            if arrived is not None and self._advance(arrived):
                self._waiting.add(arrived)
            self._drop_ended()
            self._admit()
            if self._active:
                self._advance(self._active.next())

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self.max_active:
            self._active.add(self._waiting.pop(min(self._waiting.owners, key=self._active.count)))

    def _drop_ended(self) -> None:
        """Let go of requests that were cancelled or have taken too long."""
        latest = time.monotonic() - self.seconds
        for turns in (self._waiting, self._active):
            for ticket in [one for one in turns if one.cancelled or one.arrived_at < latest]:
                self._end(ticket, Stopped() if ticket.cancelled else TimeoutError())

    def _advance(self, ticket: Ticket) -> bool:
        """Get one more item of a request; whether there may be others."""
        try:
            try:
                ticket.deliver(next(ticket.work))
                return True
            except StopIteration as last:
                ticket.deliver(last.value)
        except Exception as error:
            self._end(ticket, error)
            return False
        seconds = time.monotonic() - ticket.arrived_at
        self._mean_seconds += FORGET * (seconds - self._mean_seconds)
        self._end(ticket, None)
        return False

    def _end(self, ticket: Ticket, error: Exception | None) -> None:
        for turns in (self._waiting, self._active):
            turns.discard(ticket)
        with self._changed:
            self._num_alive -= 1
        try:
            ticket.work.close()
        finally:
            ticket.end(error)
