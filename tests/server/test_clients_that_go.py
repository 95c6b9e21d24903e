"""Clients that leave, wait too long, or come in crowds; and a server that is told to stop."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install 'foretoken[serve]'")
pytest.importorskip("httpx2", reason="the client of these tests is not installed: scripts/setup dev")

import httpx2 as httpx

from foretoken.server import connections, exchange
from foretoken.server.run import listen
from helpers.serving import serving

TEXT = {"model": "toy", "prompt": "hi", "max_tokens": 4}
ENDLESS = TEXT | {"max_tokens": 10_000_000}


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for what another thread does; ten seconds are for a machine that does much else."""
    give_up_at = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def health(client: Any) -> tuple[int, int]:
    """How many requests run and wait."""
    told = client.get("/health").json()
    return told["running"], told["waiting"]


@contextmanager
def running(client: Any) -> Iterator[None]:
    """An endless answer that has begun, and that the client leaves at the end of the block."""
    with client.stream("POST", "/v1/completions", json=ENDLESS | {"stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        yield
        lines.close()


def leave(client: Any, stream: bool) -> None:
    """Ask for an endless answer and go."""
    if stream:
        with running(client):
            pass
    else:
        with pytest.raises(httpx.TimeoutException):
            client.post("/v1/completions", json=ENDLESS, timeout=0.3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_place(lm, stream):
    with serving(lm, max_active=1) as client:
        leave(client, stream)
        wait_until(lambda: health(client) == (0, 0))
        assert client.post("/v1/completions", json=TEXT).status_code == 200


def test_a_client_that_goes_while_it_waits_is_forgotten(lm):
    with serving(lm, max_active=1) as client, running(client):
        leave(client, stream=False)
        wait_until(lambda: health(client) == (1, 0))


def test_a_full_queue_answers_at_once_and_says_when_to_come_again(lm):
    with serving(lm, max_active=1, max_queue=0) as client:
        with running(client):
            refused = client.post("/v1/completions", json=TEXT)
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
        wait_until(lambda: health(client) == (0, 0))
        assert client.post("/v1/completions", json=TEXT).status_code == 200


def test_an_answer_that_takes_too_long_is_ended(lm):
    with serving(lm, seconds=0.3) as client:
        late = client.post("/v1/completions", json=ENDLESS)
        assert late.status_code == 504 and late.json()["error"]["code"] == "timeout"
        with client.stream("POST", "/v1/completions", json=ENDLESS | {"stream": True}) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert '"timeout"' in lines[-2] and lines[-1] == "data: [DONE]"
        assert client.post("/v1/completions", json=TEXT).status_code == 200


def test_a_short_question_is_answered_while_a_long_answer_runs(lm):
    with serving(lm) as client, running(client):
        assert client.post("/v1/completions", json=TEXT).status_code == 200
        assert health(client)[0] == 1, "the long one still runs"


def test_a_server_that_stops_finishes_what_it_has_begun(lm):
    answers: list[Any] = []
    with serving(lm) as client:
        url, question = f"{client.base_url}/v1/completions", TEXT | {"max_tokens": 600}
        asking = threading.Thread(target=lambda: answers.append(httpx.post(url, json=question, trust_env=False)))
        asking.start()
        wait_until(lambda: health(client)[0] == 1)
    # The block's end has told the server to stop, and waited for it.
    asking.join(10)
    assert answers[0].json()["choices"][0]["text"] == lm.generate("hi", max_new_tokens=600).text


def test_a_client_that_does_not_read_is_let_go(monkeypatch):
    """The connection's buffers are full, so that sending waits."""
    monkeypatch.setattr(exchange, "GRACE", 0.05)

    class Endless:
        cancelled, streams = False, False

        async def done(self) -> None:
            self.reply = SimpleNamespace(whole=dict)

        def cancel(self) -> None:
            self.cancelled = True

    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    async def answered() -> Endless:
        running: Any = Endless()
        await exchange.Answer(running, seconds=0.05)({"type": "http"}, never, never)
        return running

    assert asyncio.run(asyncio.wait_for(answered(), 10)).cancelled


@contextmanager
def connected(client: Any, room: int | None = None) -> Iterator[socket.socket]:
    """A bare connection to the server, maybe with little room for what it is sent."""
    with socket.socket() as raw:
        if room is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        raw.settimeout(10)
        raw.connect((client.base_url.host, client.base_url.port))
        yield raw


def head(length: int, path: str = "/v1/completions") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /health HTTP/1.1\r\nHos", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", head(4, "/health") + b"ab"],
)
def test_a_connection_without_a_request_is_closed(lm, monkeypatch, sent):
    """It may say nothing from the beginning, stop within a request's head, or fall silent after an answer."""
    monkeypatch.setattr(connections, "QUIET", 0.3)
    with serving(lm) as client, running(client), connected(client) as raw:
        raw.sendall(sent)
        while raw.recv(1 << 16):
            pass  # until the server has closed it
        assert health(client) == (1, 0), "another connection's answer goes on"


def test_connections_beyond_the_bound_are_refused_and_the_others_answered(lm, monkeypatch):
    """As many half-open ones as may be are no harm to those that were there before, and soon gone."""
    monkeypatch.setattr(connections, "MOST", 4)
    monkeypatch.setattr(connections, "QUIET", 2)
    with serving(lm) as client, running(client), ExitStack() as stack:
        half_open = [stack.enter_context(connected(client)) for _ in range(3)]
        with connected(client) as raw:
            told = b"".join(iter(lambda: raw.recv(1 << 16), b""))
        assert told.startswith(b"HTTP/1.1 503") and b'"too_many_connections"' in told
        assert all(raw.recv(1) == b"" for raw in half_open), "closed once they were quiet for too long"
        assert health(client) == (1, 0), "the answer that was running is"


def test_a_request_that_comes_byte_by_byte_does_not_stay_for_ever(lm, monkeypatch):
    monkeypatch.setattr(connections, "QUIET", 0.3)
    with serving(lm) as client, connected(client) as raw, pytest.raises(OSError):
        for byte in head(5) * 100:
            raw.sendall(bytes([byte]))
            time.sleep(0.01)


def listen_with_little_room(*where: Any) -> socket.socket:
    listening = listen(*where)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024)
    return listening


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_reads_slowly_gets_every_byte_in_order(lm, monkeypatch, version):
    """The system takes a part of an event, or none; what is left goes through the event loop."""
    monkeypatch.setattr("helpers.serving.listen", listen_with_little_room)
    body = json.dumps(TEXT | {"stream": True, "max_tokens": 400, "foretoken": {"drafter": "ngram"}}).encode()
    asked = head(len(body)).replace(b"HTTP/1.1", f"HTTP/{version}\r\nConnection: close".encode())
    with serving(lm) as client, connected(client, room=1024) as raw:
        raw.sendall(asked + body)
        time.sleep(0.2)  # so that no more can be sent
        got = b"".join(iter(lambda: raw.recv(1500), b""))
    _, _, told = got.partition(b"\r\n\r\n")
    if version == "1.1":
        sizes, told = told, b""
        while size := int(sizes.partition(b"\r\n")[0], 16):
            at = sizes.index(b"\r\n") + 2
            told, sizes = told + sizes[at : at + size], sizes[at + size + 2 :]
    *events, end = told.decode().split("\n\n")[:-1]
    texts = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events]
    assert end == "data: [DONE]" and "".join(texts) == lm.generate("hi", max_new_tokens=400).text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_unread_what_it_was_sent_is_let_go(lm, monkeypatch, stream):
    """Its place is free, and nothing of the connection stays with the server."""
    monkeypatch.setattr(connections, "UNREAD", 0.3)
    monkeypatch.setattr("helpers.serving.listen", listen_with_little_room)
    lengthy = {"max_tokens": 10_000_000} if stream else {"max_tokens": 300, "logprobs": 20}
    body = json.dumps(TEXT | {"stream": stream} | lengthy).encode()
    with serving(lm) as client, connected(client, room=1024) as raw:
        raw.sendall(head(len(body)) + body)
        wait_until(lambda: health(client)[0] == 1)
        wait_until(lambda: health(client) == (0, 0))
        with pytest.raises(OSError):
            wait_until(lambda: bool(raw.send(b"x")) and False)
