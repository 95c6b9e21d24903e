"""``foretoken bench costs``, and ``foretoken tune`` on what it writes."""

from __future__ import annotations

import json

import pytest

from foretoken.core.measuring import ROWS
from foretoken.memory import costs as kept
from helpers.commanding import call
from helpers.logs import rows, write_log, write_tokenizer


@pytest.fixture(autouse=True)
def nothing_known(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "_KNOWN", {})


def test_costs_are_measured_and_tune_reads_them(monkeypatch, capsys, tmp_path):
    path = tmp_path / "new" / "costs.json"
    status, out, err = call(monkeypatch, capsys, "bench", "costs", "--model", "toy", "--out", path)
    assert status == 0 and "| 64 " in out and str(path.name) in err
    written = json.loads(path.read_text())
    assert written["rows"] == sorted(ROWS) and len(written["milliseconds"]) == len(ROWS)
    (cached,) = (tmp_path / "cache").rglob("*.json")
    assert json.loads(cached.read_text()) == written, "answers begin with these costs from now on"

    log, tokenizer = write_log(tmp_path / "a.jsonl", rows(3)), write_tokenizer(tmp_path / "tokenizer.json")
    tune = ("tune", log, "--tokenizer", tokenizer, "--jobs", 1, "--drafter", "anpd", "--costs", path)
    status, out, _ = call(monkeypatch, capsys, *tune)
    assert status == 0 and "anpd" in out


@pytest.mark.parametrize("options", [["--model", "no/such/model"], ["--model", "toy", "--out", "/proc/costs.json"]])
def test_what_cannot_be_measured_or_written_ends_in_a_sentence(monkeypatch, capsys, tmp_path, options):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(monkeypatch, capsys, "bench", "costs", *options)
    assert status == 2 and err.count("\n") <= 3 and not list((tmp_path / "cache").rglob("*.json"))
