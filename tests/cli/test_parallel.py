"""``foretoken generate --lookahead-parallel``: one answer of several processes, and what a bad start says."""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stdout
from multiprocessing.connection import Connection

import pytest
import torch

from foretoken.cli import main
from helpers.commanding import call
from helpers.ranks import meeting

ASK = ("generate", "--lookahead-parallel", "--prompt", "abc abc", "--max-new-tokens", "24", "--device", "cpu")


def command(end: Connection, environment: dict[str, str], *words: str) -> None:
    """Run the command as torchrun would, and send its exit status and standard output."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    sys.argv = ["foretoken", *words]
    with redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as exit_:
            end.send((exit_.code or 0, out.getvalue()))


def test_two_processes_write_one_answer(server, model_folder):
    words = [*ASK, "--model", str(model_folder), "--temperature", "0.9", "--json"]
    pipes = [server.Pipe() for _ in range(2)]
    for environment, (_, end) in zip(meeting(2), pipes, strict=True):
        server.Process(target=command, args=(end, environment, *words), daemon=True).start()
    (first, text), (second, nothing) = [mine.recv() if mine.poll(600) else ("no answer", "") for mine, _ in pipes]
    assert (first, second, nothing) == (0, 0, "")
    answer = json.loads(text)
    assert len(answer["tokens"]) == 24 and answer["stats"]["drafted"] > 0


@pytest.mark.parametrize(
    ("environment", "words", "sentence"),
    [
        ({}, (), "start them with torchrun"),
        ({"RANK": 0, "WORLD_SIZE": 2}, (), "start them with torchrun"),
        ({"RANK": 0, "WORLD_SIZE": 99, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}, (), "There is work for 30"),
        ({}, ("--drafter", "ngram"), "leave out --drafter"),
        ({}, ("--drafter", "draft-model:model=tiny"), "leave out --drafter"),
    ],
)
def test_a_bad_start_ends_in_a_sentence(monkeypatch, capsys, environment, words, sentence):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    status, out, error = call(monkeypatch, capsys, *ASK, *words)
    assert status == 2 and out == "" and sentence in " ".join(error.split())
