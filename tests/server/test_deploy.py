"""The files for whoever runs a server name commands, options and metrics that there are."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install 'foretoken[serve]'")
pytest.importorskip("httpx2", reason="the client of these tests is not installed: scripts/setup dev")

import typer

from foretoken.cli.app import load

DEPLOY = Path(__file__).parents[2] / "docs/deploy"


def check(words: list[str]) -> None:
    """The words after ``foretoken serve`` are options that it has."""
    command = load("serve")
    _, extra, _ = command.make_parser(typer.Context(command)).parse_args(words)
    assert not extra


def test_the_commands_of_the_files_have_these_options():
    docker = (DEPLOY / "Dockerfile").read_text("utf-8")
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", docker, re.MULTILINE)[1])
    assert entry[:2] == ["foretoken", "serve"] and re.search("^USER foretoken$", docker, re.MULTILINE)
    compose = (DEPLOY / "compose.yaml").read_text("utf-8")
    check([*entry[2:], *json.loads(re.search(r"command: (\[.*\])", compose)[1])])
    unit = (DEPLOY / "foretoken.service").read_text("utf-8")
    _, name, *words = shlex.split(re.search("^ExecStart=(.*)$", unit, re.MULTILINE)[1])
    assert name == "serve"
    check(words)


def test_the_dashboard_shows_metrics_that_there_are(client):
    told = {line.split("{")[0].split(" ")[0] for line in client.get("/metrics").text.splitlines() if line[0] != "#"}
    told |= {line.split(" ")[2] for line in client.get("/metrics").text.splitlines() if line.startswith("# TYPE")}
    dashboard = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"(?:foretoken:|process_)\w+", target["expr"])
    }
    assert len(asked) > 15 and asked <= told
