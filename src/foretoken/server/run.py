"""Listen on an address until a signal comes, and finish then what was begun."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette

from foretoken.core.errors import RequestError
from foretoken.server.connections import QUIET, Connection, notice_the_dead

BACKLOG = 256


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; port 0 takes a free one.

    Raises:
        ForetokenError: If the address is not to be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server((str(address[0]), port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no name of a machine"
        raise RequestError(f"Nobody can listen on {host}:{port}: {reason}. Give another --host or --port.") from error
    notice_the_dead(listening)
    return listening


def url_of(listening: socket.socket) -> str:
    """Where a socket is reached from this machine."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: Starlette, listening: socket.socket, started: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM. Connections without a request are closed then, others once they are answered.

    Args:
        app: What answers.
        listening: Where.
        started: Called once requests are answered.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it again once it is done
    with suppress(KeyboardInterrupt):
        server(app, started).run(sockets=[listening])


def server(app: Starlette, started: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """A server that logs no request: neither whose it was nor what it said."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="critical",
        server_header=False,
        http=Connection,
        timeout_keep_alive=int(QUIET),
        ws="none",
    )
    return Server(config)
