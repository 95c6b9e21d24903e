"""Who gets the next forward, who waits, and who is let go."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from foretoken.server.scheduler import QueueFull, Scheduler, Stopped, Ticket


class Load:
    """Requests that note their forwards in one list, in the order in which they got them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.forwards: list[str] = []
        self.ends: dict[str, Any] = {}
        self.begun = threading.Event()  # whether the first forward of a request that blocks was asked for
        self.go_on = threading.Event()

    def ask(
        self, name: str, forwards: int = 1, owner: str | None = None, blocks: bool = False, fails: str = ""
    ) -> Ticket:
        ended = threading.Event()

        def work() -> Generator[str, None, str]:
            try:
                if fails == "at once":
                    raise ValueError(name)
                yield "read"
                for left in range(forwards - 1, -1, -1):
                    if blocks:
                        self.begun.set()
                        assert self.go_on.wait(10)
                    if fails:
                        raise ValueError(name)
                    self.forwards.append(name)
                    if left:
                        yield "forward"
                return "last"
            finally:
                self.ends[name] = "closed"

        def end(error: Exception | None) -> None:
            self.ends[name] = error
            ended.set()

        ticket = Ticket(owner or name, work(), lambda item: None, end)
        ticket.ended = ended  # type: ignore[attr-defined]
        self.scheduler.submit(ticket)
        return ticket

    def hold(self) -> Ticket:
        """A request that keeps the thread busy until ``go_on`` is set, so that others can come meanwhile."""
        ticket = self.ask("holder", blocks=True)
        assert self.begun.wait(10)
        return ticket


@contextmanager
def loaded(**options: Any) -> Iterator[Load]:
    scheduler = Scheduler(**options)
    scheduler.start()
    load = Load(scheduler)
    try:
        yield load
    finally:
        load.go_on.set()
        scheduler.close()


def test_requests_take_turns_forward_by_forward():
    with loaded(max_active=3) as load:
        load.hold()
        for name in "ab":
            load.ask(name, forwards=3)
    assert load.forwards == ["holder", *"aababb"]  # b is read while a has its first one
    assert load.ends == {"holder": None, "a": None, "b": None}


def test_an_owner_with_many_answers_gets_no_more_forwards_than_one_with_a_single_answer():
    with loaded(max_active=5) as load:
        load.hold()
        for i in range(3):
            load.ask(f"a{i}", forwards=4, owner="a")
        load.ask("b", forwards=4)
        load.go_on.set()
    till_b_is_done = load.forwards[1 : len(load.forwards) - load.forwards[::-1].index("b")]
    assert till_b_is_done.count("b") == 4
    assert sum(name != "b" for name in till_b_is_done) <= 5


def test_a_free_place_goes_to_the_owner_who_has_the_fewest():
    with loaded(max_active=1) as load:
        load.hold()
        for i in range(3):
            load.ask(f"a{i}", owner="a")
        load.ask("b")
    assert load.forwards.index("b") <= 2  # not after all of those that came before it
    assert [name for name in load.forwards if name[0] == "a"] == ["a0", "a1", "a2"]


def test_there_are_never_more_answers_at_once_than_may_be():
    seen = []
    with loaded(max_active=2) as load:
        load.hold()
        for name in "abcde":
            load.ask(name, forwards=3)
        load.go_on.set()
        while load.scheduler.num_running or load.scheduler.num_waiting:
            seen.append(load.scheduler.num_running)
    assert max(seen) <= 2
    assert len(load.forwards) == 16


def test_beyond_the_queue_a_request_is_refused_and_told_when_to_come_again():
    with loaded(max_active=1, max_queue=2) as load:
        load.hold()
        load.ask("a")
        load.ask("b")
        assert load.scheduler.num_waiting == 2
        with pytest.raises(QueueFull) as full:
            load.ask("c")
        assert full.value.retry_after >= 1
        load.go_on.set()
    assert load.forwards == ["holder", "a", "b"]


def test_a_request_that_is_cancelled_gets_no_further_forward_and_others_go_on():
    with loaded(max_active=4) as load:
        load.hold()
        waiting = load.ask("a", forwards=1000)
        load.ask("b", forwards=2)
        load.scheduler.cancel(waiting)
        load.go_on.set()
    assert load.forwards == ["holder", "b", "b"]
    assert isinstance(load.ends["a"], Stopped)


def test_a_request_that_takes_too_long_is_let_go():
    with loaded(seconds=0.0) as load:
        ticket = load.ask("a", forwards=1000)
        assert ticket.ended.wait(10)  # type: ignore[attr-defined]
    assert isinstance(load.ends["a"], TimeoutError) and len(load.forwards) <= 1


@pytest.mark.parametrize("when", ["at once", "later"])
def test_an_error_ends_its_own_request_alone(when):
    with loaded() as load:
        load.hold()
        load.ask("a", forwards=3, fails=when)
        load.ask("b", forwards=3)
    assert load.forwards.count("b") == 3 and load.ends["b"] is None
    assert isinstance(load.ends["a"], ValueError)


def test_closing_finishes_what_was_begun_and_takes_nothing_more():
    with loaded(max_active=1) as load:
        load.hold()
        load.ask("a", forwards=5)
        load.go_on.set()
        load.scheduler.close()
        with pytest.raises(Stopped):
            load.ask("b")
    assert load.forwards == ["holder", *"aaaaa"]


def test_what_cannot_be_delivered_ends_its_own_request_alone():
    """The last item, too, which comes as the generator's return."""

    def deliver(item: Any) -> None:
        raise ValueError(item)

    def nothing_but_the_last() -> Generator[str, None, str]:
        return "last"
        yield

    with loaded() as load:
        for name, work in (("first", iter_of("item")), ("last", nothing_but_the_last())):
            load.scheduler.submit(Ticket(name, work, deliver, lambda error, name=name: load.ends.update({name: error})))
        load.ask("other")
    assert load.ends["other"] is None
    assert all(isinstance(load.ends[name], ValueError) for name in ("first", "last"))


def iter_of(item: str) -> Generator[str, None, str]:
    yield item
    return item
