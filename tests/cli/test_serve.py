"""The command: a process that answers, and stops when it is told to."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install 'foretoken[serve]'")
pytest.importorskip("httpx2", reason="the client of these tests is not installed: scripts/setup dev")

import httpx2 as httpx

from foretoken import load
from foretoken.memory.history import History
from helpers.commanding import call


def test_a_server_answers_and_stops_cleanly_at_sigterm(tmp_path):
    (tmp_path / "keys").write_text("alice sk-alice-0123456789\n")
    history = tmp_path / "history.sqlite"
    command = ["serve", "toy", "--port", "0", "--api-keys", tmp_path / "keys", "--background", "none"]
    process = subprocess.Popen(
        [sys.executable, "-m", "foretoken", *map(str, command), "--history", str(history)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
    )
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")  # of which the first may say that loops were compiled
        address = next(found for line in lines if (found := re.search(r"toy answers at (http://127\S+:\d+/v1)", line)))
        with httpx.Client(trust_env=False, headers={"Authorization": "Bearer sk-alice-0123456789"}) as client:
            answer = client.post(f"{address[1]}/completions", json={"model": "toy", "prompt": "abc"}, timeout=60)
        assert (
            answer.json()["choices"][0]["text"] == load("toy", background=None).generate("abc", max_new_tokens=16).text
        )
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in said and "sk-" not in said
    with History(history) as kept:
        assert [(row.namespace, row.answers) for row in kept.stats()] == [("alice/default", 1)]


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *words: call(monkeypatch, capsys, "serve", "toy", *words)


def test_what_cannot_be_served_is_refused_before_a_model_is_loaded(run, tmp_path):
    (tmp_path / "keys").write_text("alice\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, said in [
            (("--port", port), "Nobody can listen on 127.0.0.1"),
            (("--host", "no.such.machine.invalid"), "Nobody can listen on no.such.machine.invalid"),
            (("--api-keys", tmp_path / "none"), "could not be read"),
            (("--api-keys", tmp_path / "keys"), "Line 1"),
            (("--timeout", 0), "--timeout is 0.0"),
            (("--timeout", "nan"), "--timeout is nan"),
            (("--drafter", "magic", "--port", 0), "no drafter named 'magic'"),
            (("--max-active", 0), "max-active"),
        ]:
            status, out, err = run(*words)
            assert (status, out) == (2, "") and said in err.replace("\n", " "), words


def test_without_the_extra_it_says_what_to_install(run, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("foretoken.server", "starlette"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    status, _, err = run("--port", 0)
    assert status == 2 and "pip install 'foretoken[serve]'" in err
