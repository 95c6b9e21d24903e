"""Keep track of events and of those who want to hear of them."""

import threading
import time
from collections import defaultdict

__all__ = ["EventLog", "Listener"]


class Listener:
    """Calls a function for every event of a given kind."""

    def __init__(self, kind, function):
        self.kind = kind
        self.function = function
        self.count = 0

    def __repr__(self):
        return "<Listener %r: %d events>" % (self.kind, self.count)

    def handle(self, event):
        """Call the function if the event is of the right kind."""
        if event.kind != self.kind:
            return False
        self.function(event)
        self.count += 1
        return True


class EventLog:
    """A list of events that can be read from several threads.

    The oldest events are dropped when there are more than maxsize.
    """

    def __init__(self, maxsize=1000):
        self.maxsize = maxsize
        self._events = []
        self._listeners = defaultdict(list)
        self._lock = threading.Lock()

    def add_listener(self, listener):
        """Register a listener and return it."""
        with self._lock:
            self._listeners[listener.kind].append(listener)
        return listener

    def remove_listener(self, listener):
        """Forget a listener; raise ValueError if it is not registered."""
