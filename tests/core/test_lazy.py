"""A property that is computed once for each object."""

from __future__ import annotations

import threading

from foretoken.core.lazy import lazy


class Slow:
    """One whose property takes as long as it is told."""

    def __init__(self, may_end: threading.Event) -> None:
        self.may_end, self.began, self.computed = may_end, threading.Event(), 0

    @lazy
    def value(self) -> int:
        self.began.set()
        self.computed += 1
        self.may_end.wait(60)
        return 7


def test_it_is_computed_once():
    done = threading.Event()
    done.set()
    slow = Slow(done)
    assert slow.value == slow.value == 7 and slow.computed == 1


def test_one_object_does_not_wait_for_another():
    """A process that is forked meanwhile would wait for ever."""
    never, now = threading.Event(), threading.Event()
    now.set()
    slow, quick = Slow(never), Slow(now)
    thread = threading.Thread(target=lambda: slow.value, daemon=True)
    thread.start()
    assert slow.began.wait(60)
    other = threading.Thread(target=lambda: quick.value, daemon=True)
    other.start()
    other.join(30)
    held = other.is_alive()
    never.set()
    assert not held
