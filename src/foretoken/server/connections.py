"""One connection of a client: how long it may say nothing, and how long it may leave unread what was sent."""

from __future__ import annotations

import asyncio
import json
import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from foretoken.server.errors import ApiError

QUIET = 30.0  # seconds without a request, before the first one and after an answer
MOST = 512  # connections at once: half of the files that systems commonly let a process open
UNREAD = 30.0  # seconds in which a client must take what was sent to it
# Whether the other side is gone: seconds of silence before it is asked, and between questions; questions in vain.
KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


def notice_the_dead(listening: socket.socket) -> None:
    """Let the system ask, on connections that say nothing, whether the other side is still there."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Connection(H11Protocol):
    """Uvicorn's connection over HTTP/1.1, which by itself waits for a first request as long as the client likes.

    It also waits as long for a client that does not read: its close waits for that, too. So ours is aborted.
    """

    _waiting: asyncio.TimerHandle | None = None  # for a request
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so that it tells of all that the system did not take
        self.app_state = {**self.app_state, "connection": self}  # for its requests
        if len(self.connections) > MOST:
            said = f"There are {MOST} connections already: try again soon."
            self._refuse(ApiError(503, said, "too_many_connections"))
        self._wait_for_a_request()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._waiting, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._wait_for_a_request()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
        super().resume_writing()

    def _wait_for_a_request(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(QUIET, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:  # else a request came meanwhile
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Say in OpenAI's shape that what came is no HTTP, and close."""
        self._refuse(ApiError(400, f"This is no HTTP/1.1: {msg[0].lower()}{msg[1:]}", "invalid_http"))

    def _refuse(self, error: ApiError) -> None:
        body = json.dumps(error.body).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        response = h11.Response(status_code=error.status, headers=headers)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
