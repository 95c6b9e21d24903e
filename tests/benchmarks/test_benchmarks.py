"""The benchmarks' own parts: how they end, what they read, what their lines come to."""

from __future__ import annotations

import gzip
import json
import sys
from importlib import import_module
from typing import Any

import pytest

from benchmarks import never_slower, replayed
from benchmarks.common import PROMPTS, finish, run
from benchmarks.recorded import log_files, read_texts
from foretoken import ForetokenError
from foretoken.engines.transformers.loading import load_tokenizer
from foretoken.measure.differences import TextChanged
from foretoken.measure.harness import Row
from foretoken.measure.prompts import parse_prompts


def test_recorded_texts_are_long_answers(tmp_path):
    rows = [{"output": "a" * 999}, {"output": "b" * 1000}, {"output": None}, {"x": 1}, {"text": "c" * 1000}]
    content = "no JSON\n" + "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-16")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    long = ["b" * 1000, "c" * 1000]
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"]
    assert read_texts(files) == {"a.jsonl": long, "b.jsonl.gz": long}
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"x": 1}\n'))
    for name in ("c.jsonl.gz", "missing"):
        with pytest.raises(ForetokenError, match=name):
            read_texts([*files, tmp_path / name])
    with pytest.raises(ForetokenError, match="has no recorded answers"):
        log_files([tmp_path, tmp_path / "missing"])


def row(**changes) -> Row:
    values: dict[str, Any] = {
        "prompt": "wiki 0",
        "kind": "wiki",
        "dtype": "float32",
        "decoding": "recorded",
        "method": "plain",
        "looped": False,
        "rounds": 1,
        "tokens": 64,
        "steps": 63,
        "rows": 63,
        "guesses": 0,
        "accepted": 0,
        "judged": 0,
        "drafter_seconds": 0.0,
        "prefill_seconds": 0.1,
        "speed": 1.0,
        "differs_at": None,
        "gap": None,
    }
    return Row(**(values | changes))


def test_a_set_is_summed_up_by_what_its_answers_gained():
    ours = {"method": replayed.OURS, "steps": 21, "accepted": 42}
    theirs = {"method": replayed.THEIRS, "speed": 1.25}
    rows = [row(), row(**ours, speed=2.0), row(**theirs), row(), row(**ours, speed=2.0), row(**theirs)]
    (line,) = replayed.by_set(rows)
    assert line == pytest.approx(
        {"set": "wiki", "answers": 2, "tokens_per_step": 3.0, "speed": 2.0, "share": 2 / 3, "over_lookup": 1.6}
    )
    assert replayed.over_all([line, line | {"speed": 8.0}])["speed"] == pytest.approx(4.0)


def test_texts_are_continued_from_their_middle():
    tokenizer = load_tokenizer("tiny")
    questions = list(never_slower.replayed_questions(tokenizer, {"news": ["one two three four"]}))
    assert [question.kind for question in questions] == ["random tokens"] * 4 + ["news"]
    assert [*questions[-1].prompt, *(questions[-1].record or [])] == tokenizer("one two three four")["input_ids"]
    assert len({tuple(question.prompt) for question in questions}) == 5


def test_what_loops_is_left_out_of_what_can_be_lost():
    lines = never_slower.table([row(), row(method="mixed-adaptive", speed=0.9), row(method="x", looped=True)])
    assert [(line["kind"], line["method"], line["speed"]) for line in lines] == [
        ("wiki", "mixed-adaptive", pytest.approx(0.9))
    ]


@pytest.mark.parametrize(("error", "status"), [(TextChanged("a"), 1), (ForetokenError("a"), 2), (None, 0)])
def test_a_program_ends_with_a_sentence_and_its_status(monkeypatch, capsys, error, status):
    def main(rounds: int = 3) -> None:
        assert rounds == 2
        if error is not None:
            raise error

    monkeypatch.setattr(sys, "argv", ["program", "--rounds", "2"])
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert (ended.value.code or 0) == status and capsys.readouterr().err == ("" if error is None else "a\n")


def test_numbers_carry_where_they_come_from(tmp_path, capsys):
    finish(tmp_path / "new" / "n.json", {"rows": [1]}, [{"speed": 1.5}])
    found = json.loads((tmp_path / "new" / "n.json").read_text())
    assert found["rows"] == [1] and {"commit", "torch", "threads", "seed"} <= found["provenance"].keys()
    assert "| 1.500 |" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["never_slower", "overhead", "latency", "recurrent", "replayed", "traces"])
def test_every_program_says_what_it_takes(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        run(import_module(f"benchmarks.{name}").main)
    assert not ended.value.code and "--out" in capsys.readouterr().out


def test_the_openings_are_prompts():
    questions = parse_prompts((PROMPTS / "openings.jsonl").read_text(), load_tokenizer("tiny").encode)
    assert {question.kind for question in questions} == {"story"} and len(questions) == 12
