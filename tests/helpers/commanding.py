"""Commands run in this process."""

from __future__ import annotations

import sys

import pytest

from foretoken.cli import run


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run ``foretoken`` with these words; (exit status, standard output, standard error), and never a traceback."""
    monkeypatch.setattr(sys, "argv", ["foretoken", *map(str, words)])
    status = run()
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err
