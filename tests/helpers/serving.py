"""A server on the toy engine, in this process, on a free port of this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install 'foretoken[serve]'")
pytest.importorskip("openai", reason="the client for the server's tests is not installed: scripts/setup dev")
import httpx2 as httpx

from foretoken import LanguageModel
from foretoken.server.app import Server
from foretoken.server.keys import ApiKeys
from foretoken.server.run import listen, server, url_of
from foretoken.server.scheduler import Scheduler


@contextmanager
def serving(
    lm: LanguageModel,
    keys: dict[str, str] | None = None,
    name: str = "toy",
    hosts: set[str] | None = None,
    **limits: Any,
) -> Iterator[httpx.Client]:
    """A client of a server that runs in a thread, and ends with the block."""
    app = Server(lm, name, ApiKeys(keys or {}), Scheduler(**limits), hosts).app()
    listening = listen("127.0.0.1", 0)
    started = threading.Event()
    running = server(app, started.set)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    assert started.wait(10)
    try:
        with httpx.Client(base_url=url_of(listening), timeout=30, trust_env=False) as client:
            yield client
    finally:
        running.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def metrics(client: httpx.Client) -> dict[str, float]:
    """What the server has counted, by name and labels but the model's."""
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {line.rsplit(" ", 1)[0].replace('model_name="toy"', ""): float(line.rsplit(" ", 1)[1]) for line in lines}
