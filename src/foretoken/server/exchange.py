"""One request between the client and the scheduler: what is said of its parts crosses to the client, its end back.

To wake the event loop costs more than to say what a part holds, and takes the interpreter from the scheduler's thread.
So a whole answer wakes it once, and a stream only for what cannot go past it; see ``line``.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Generator
from contextlib import closing, suppress

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from foretoken.server.answers import Part, Ready
from foretoken.server.errors import ApiError, as_api_error
from foretoken.server.line import Line
from foretoken.server.metrics import Meter, Metrics
from foretoken.server.replies import Reply
from foretoken.server.scheduler import QueueFull, Scheduler, Stopped, Ticket

GRACE = 5.0  # seconds beyond a request's own limit, in which a slow client may read the rest
STREAM = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Exchange:
    """A request that was submitted, as the event loop sees it.

    Args:
        scheduler: Runs it.
        owner: Who asks.
        work: Gives its parts; see ``answers``.
        metrics: Where it is counted.
        reply: Takes in its parts, in the scheduler's thread.
        streams: Whether events are wanted as parts come.

    Raises:
        ApiError: If the queue is full, or the server stops.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        owner: str,
        work: Generator[Ready | Part, None, Part | None],
        metrics: Metrics,
        reply: Reply,
        streams: bool,
    ) -> None:
        self.reply, self.streams = reply, streams
        self._scheduler, self._meter = scheduler, Meter(metrics)
        self._loop = asyncio.get_running_loop()
        self._items: deque[Ready | bytes | Exception | None] = deque()
        self._came, self._is_woken = asyncio.Event(), False
        self._line: Line | None = None
        self._is_idle = False  # whether the loop has sent all that it took, and waits
        self._ticket = Ticket(owner, work, self._deliver, self._end)
        try:
            scheduler.submit(self._ticket)
        except QueueFull as full:
            said = f"{scheduler.max_queue} requests are waiting already: try again in {full.retry_after} seconds."
            raise ApiError(429, said, "queue_full", retry_after=full.retry_after) from None
        except Stopped:
            raise ApiError(503, "The server is stopping: ask another.", "stopping") from None

    async def ready(self) -> None:
        """Wait until the request has been read.

        Raises:
            ApiError: If it cannot be honoured.
        """
        await self._next()

    async def done(self) -> None:
        """Wait until the reply has every part.

        Raises:
            ApiError: If something goes wrong before the end.
        """
        await self._next()

    async def events(self, line: Line) -> AsyncIterator[bytes]:
        """The events of the reply that do not go past the loop, again and again all that there are.

        Args:
            line: How others go past it. Each item must be sent and the line settled before the next one is asked for.

        Raises:
            ApiError: If something goes wrong before the end.
        """
        self._line = line if line.is_open else None
        while (item := await self._next()) is not None:
            assert isinstance(item, bytes)
            events = [item]
            while self._items and isinstance(self._items[0], bytes):
                events.append(self._items[0])
                self._items.popleft()
            yield b"".join(events)

    def cancel(self) -> None:
        """Let the request have no further forward."""
        self._scheduler.cancel(self._ticket)

    async def _next(self) -> Ready | bytes | None:
        while not self._items:
            self._is_idle = True
            await self._came.wait()
            self._came.clear()
            self._is_woken = False  # before the next look: whatever comes after it wakes again
        self._is_idle = False  # before there may be no items
        item = self._items.popleft()
        if isinstance(item, TimeoutError):
            said = f"The answer was not done within {self._scheduler.seconds:.0f} seconds: ask for fewer tokens."
            raise ApiError(504, said, "timeout")
        if isinstance(item, Stopped):
            raise ApiError(503, "The request was cancelled.", "cancelled")
        if isinstance(item, Exception):
            raise as_api_error(item)
        return item

    def _deliver(self, item: Ready | Part) -> None:
        self._meter.add(item)
        if isinstance(item, Ready):
            self._put(item)
        elif not self.streams:
            self.reply.add(item)
        elif events := self.reply.events(item):
            # In this order: where there are no items and the loop is idle then, it sends nothing until it is woken.
            if self._line is None or self._items or not self._is_idle:
                self._put(events)
            elif not self._line.send(events):
                self._put(b"")  # so that the loop settles the line

    def _end(self, error: Exception | None) -> None:
        self._meter.end(error)
        self._put(error)

    def _put(self, item: Ready | bytes | Exception | None) -> None:
        self._items.append(item)
        if not self._is_woken:
            self._is_woken = True
            with suppress(RuntimeError):  # the loop is closed, so that nobody listens
                self._loop.call_soon_threadsafe(self._came.set)


class Answer(Response):
    """The HTTP answer to a request that can be honoured: one JSON object, or events as its parts come.

    Args:
        exchange: The request.
        seconds: How long the exchange may take in all, a slow client with it.
    """

    def __init__(self, exchange: Exchange, seconds: float) -> None:
        super().__init__()
        self._exchange, self._seconds = exchange, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._cancel_when_the_client_goes(receive))
        try:
            async with asyncio.timeout(self._seconds + GRACE):
                if self._exchange.streams:
                    await self._send_events(scope, send)
                else:
                    await (await self._whole())(scope, receive, send)
        except TimeoutError:
            pass  # the client does not read: the connection is closed
        finally:
            watch.cancel()
            self._exchange.cancel()

    async def _whole(self) -> Response:
        try:
            await self._exchange.done()
        except ApiError as error:
            return refusal(error)
        return JSONResponse(self._exchange.reply.whole())

    async def _send_events(self, scope: Scope, send: Send) -> None:
        head = [(name.lower().encode(), value.encode()) for name, value in STREAM.items()]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        with closing(Line(scope)) as line:
            await line.settle()
            try:
                async for events in self._exchange.events(line):
                    await line.settle()
                    if events:
                        await send({"type": "http.response.body", "body": events, "more_body": True})
                        await line.settle()
            except ApiError as error:
                event = b"data: " + json.dumps(error.body).encode() + b"\n\n"
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _cancel_when_the_client_goes(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._exchange.cancel()


def refusal(error: ApiError) -> Response:
    """The HTTP answer to a request that gets none."""
    return JSONResponse(error.body, error.status, error.headers)
