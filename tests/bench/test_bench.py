"""The benchmarks' own parts: a figure is worth what counts it."""

from __future__ import annotations

import ast
import gzip
import json
from collections import Counter

import pytest

from foretoken import ForetokenError
from foretoken.bench import replayed, speed
from foretoken.bench.overhead import half_predictable
from foretoken.bench.recorded import log_files, read_texts
from foretoken.bench.speed import Row, read_prompts, summarise
from foretoken.measure.differences import TextChanged
from foretoken.measure.loops import loops
from helpers.commanding import call


def row(**changes) -> Row:
    values = {
        "prompt": "code-1",
        "kind": "code",
        "dtype": "float32",
        "decoding": "greedy",
        "tokens": 200,
        "looped": False,
        "seconds": {"transformers": 2.2, "transformers lookup": 1.5, "plain": 2.0, "anpd": 1.0},
        "acceptance_length": 2.0,
        "differs_at": None,
        "gap": None,
        "as_transformers": True,
    }
    return Row(**(values | changes))


def test_a_difference_stops_the_benchmark_loudly():
    noise = {"float32": 1e-5, "bfloat16": 0.1}
    speed._fail_on_differences([row(), row(dtype="bfloat16", differs_at=7, gap=0.05)], noise)
    for wrong in (
        row(differs_at=7, gap=0.0),
        row(dtype="bfloat16", differs_at=7, gap=0.5),
        row(dtype="bfloat16", as_transformers=False),
        row(decoding="sampled", differs_at=3, gap=0.0),
    ):
        with pytest.raises(TextChanged, match="code-1"):
            speed._fail_on_differences([row(), wrong], noise)


def test_another_text_ends_a_command_with_status_1_and_leaves_nothing(monkeypatch, capsys, tmp_path):
    def measure(*_):
        raise TextChanged("Drafting changed a text.")

    monkeypatch.setattr(replayed, "measure", measure)
    status, out, err = call(monkeypatch, capsys, "bench", "replayed", "--out", tmp_path / "new" / "r.json")
    assert (status, out) == (1, "") and "Drafting changed a text." in err and not list(tmp_path.iterdir())


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


def test_outputs_that_loop_are_counted_apart():
    lines = list(summarise([row(), row(seconds={**row().seconds, "anpd": 0.1}, looped=True)]))
    assert [(line["looped"], round(line["anpd_over_plain"], 3)) for line in lines] == [(False, 2.0), (True, 20.0)]


def test_loops_are_told_from_repetition():
    text = half_predictable(400)
    assert not loops(text) and not loops([*text[:100], *text[:100]])
    for period in (1, 2, 7, 40, 64):
        assert loops([*text[:50], *(text[:period] * (2 + 200 // period))])
        assert not loops([*text[:50], *text[:period], *text[60:100]])


def test_the_prompts_are_of_five_kinds_and_all_differ():
    prompts = read_prompts()
    assert Counter(prompt["kind"] for prompt in prompts) == {
        "code": 9,
        "edit": 9,
        "pattern": 6,
        "story": 6,
        "chat": 6,
    }
    assert len({prompt["prompt"] for prompt in prompts}) == 36
    for prompt in prompts:
        if prompt["kind"] == "edit":
            ast.parse(prompt["prompt"].split("# Before:\n")[1].split("\n# After")[0])
