"""Parts of a stream's body go from the scheduler's thread to the system, past the event loop.

To wake the loop for each token takes a quarter of a millisecond: both threads then want the interpreter, six times in
turns. So the loop is woken only for what the system did not take at once, as where a client reads slowly.
"""

from __future__ import annotations

import threading
from socket import socket

from starlette.types import Scope

from foretoken.server.connections import Connection


class Line:
    """The way of a chunked body to its client. At most one thread sends at a time, as the exchange sees to.

    Args:
        scope: Of the request. A body that is not chunked, as HTTP/1.0 has it, can only go through the loop.
    """

    def __init__(self, scope: Scope) -> None:
        self._connection: Connection = scope["state"]["connection"]
        self._unsent = b""
        # Of our own: the loop may close its socket meanwhile, and another client's may then get the same number.
        shared = self._connection.transport.get_extra_info("socket")
        self._socket: socket | None = shared.dup() if scope["http_version"] == "1.1" else None
        self._closing = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether ``send`` can be used."""
        return self._socket is not None

    def send(self, body: bytes) -> bool:
        """Send a part of the body from another thread than the loop's; whether the system took all of it."""
        chunk = b"%x\r\n%b\r\n" % (len(body), body)
        with self._closing:
            try:
                num_sent = len(chunk) if self._socket is None else self._socket.send(chunk)
            except OSError:  # it takes none now, or the client has gone, which the loop will notice
                num_sent = 0
        self._unsent = chunk[num_sent:]
        return not self._unsent

    async def settle(self) -> None:
        """Wait until the system has all that was to be sent, in the loop."""
        if self._unsent:
            self._connection.transport.write(self._unsent)
            self._unsent = b""
        await self._connection.flow.drain()

    def close(self) -> None:
        """Send nothing more past the loop."""
        with self._closing:
            if self._socket is not None:
                self._socket.close()
            self._socket = None
