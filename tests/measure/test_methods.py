"""Methods in turns: what is counted adds up, a wrong token ends the run, and loops stay out of the headline."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from transformers import GenerationConfig

from benchmarks.overhead import half_predictable
from foretoken.core.contracts import Verdict
from foretoken.core.decode import decode
from foretoken.core.draft import Draft
from foretoken.core.errors import ForetokenError
from foretoken.drafters import AdaptiveNgram, Anpd, EarlyExit
from foretoken.engines.transformers.loading import load_model, load_tokenizer
from foretoken.measure import run
from foretoken.measure.differences import TextChanged, gap
from foretoken.measure.harness import Row, headline, num_judged, summarise
from foretoken.measure.loops import loops
from foretoken.measure.measured_model import MeasuredModel
from foretoken.measure.methods import METHODS, choose_methods
from foretoken.measure.prompts import Question, bundled_prompts, parse_prompts
from foretoken.measure.run import Conditions, measure
from foretoken.reports.methods import methods_page
from helpers.commanding import call
from helpers.drafting import Making, verified

LINE = {"id": "abc", "kind": "pattern", "prompt": "a b c a b c a b c a b c"}


def encode(text: str) -> list[int]:
    return load_tokenizer("tiny")(text)["input_ids"]


PROMPT = Question("abc", "pattern", encode(LINE["prompt"]))
SHORT = Conditions(rounds=2, max_new_tokens=12)


@pytest.fixture(scope="module")
def measured() -> MeasuredModel:
    return MeasuredModel(load_model("tiny", "float32", "cpu"))


def test_texts_may_be_compared_in_float64():
    assert MeasuredModel(load_model("tiny", "float64", "cpu")).dtype == "float64"


def row(**changes) -> Row:
    values: dict[str, Any] = {
        "prompt": "code-1",
        "kind": "code",
        "dtype": "float32",
        "decoding": "greedy",
        "method": "anpd",
        "looped": False,
        "rounds": 1,
        "tokens": 9,
        "steps": 4,
        "rows": 20,
        "guesses": 14,
        "accepted": 4,
        "judged": 6,
        "drafter_seconds": 0.008,
        "prefill_seconds": 0.1,
        "speed": 2.0,
        "differs_at": None,
        "gap": None,
    }
    return Row(**(values | changes))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_method_answers_as_plain_decoding_and_its_counts_add_up(measured, temperature):
    measured = replace(measured, draft_model=measured.model)
    (rows,) = measure(measured, [PROMPT], choose_methods([], True), replace(SHORT, temperature=temperature))
    without_heads = [name for name, method in METHODS.items() if not method.needs_heads]  # there are none here
    sampled_alike = [name for name in without_heads if METHODS[name].generate is None]
    assert [row.method for row in rows] == (sampled_alike if temperature else without_heads)
    for row in rows:
        assert row.differs_at is None and row.as_dict()["identical"]
        assert row.tokens == row.rounds + row.steps + row.accepted == rows[0].tokens
        assert row.accepted <= row.guesses <= row.rows - row.steps
        if METHODS[row.method].generate is None:
            assert row.accepted <= row.judged <= row.accepted + row.steps
        assert row.speed > 0 and row.drafter_seconds >= 0
    plain = rows[0]
    assert (plain.speed, plain.guesses, plain.rows, plain.drafter_seconds) == (1.0, 0, plain.steps, 0.0)


@pytest.mark.parametrize("method", ["ngram", "mixed-adaptive", "transformers", "transformers-lookup"])
def test_a_recorded_answer_is_given_whatever_the_model_would_say(measured, method):
    """Also past a token at which the model's own answers end."""
    record = [7, 8, 9, 0, 7, 8, 9, 0, 7, 8, 9, 3]
    question = replace(PROMPT, record=record)
    (rows,) = measure(measured, [question], choose_methods([method], False), replace(SHORT, max_new_tokens=2))
    assert [(row.method, row.tokens, row.decoding) for row in rows] == [
        ("plain", 24, "recorded"),
        (method, 24, "recorded"),
    ]


def test_transformers_own_loop_is_counted_by_its_forwards(measured):
    chosen = choose_methods(["transformers", "transformers-lookup"], False)
    (rows,) = measure(measured, [PROMPT], chosen, replace(SHORT, rounds=1, max_new_tokens=40))
    plain, own, lookup = rows
    assert (own.steps, own.accepted, own.guesses, own.rows) == (plain.steps, 0, 0, plain.rows)
    assert lookup.steps < plain.steps and 0 < lookup.accepted <= lookup.guesses


def test_nothing_of_a_models_own_settings_reaches_transformers_loop(measured):
    """Neither a penalty for what it repeats nor sampling: our loop has none of these here either."""
    before = measured.model.generation_config
    changed = GenerationConfig.from_dict(before.to_dict() | {"repetition_penalty": 5.0, "do_sample": True})
    measured.model.generation_config = changed
    try:
        (rows,) = measure(measured, [PROMPT], choose_methods(["transformers"], False), SHORT)
        assert measured.model.generation_config is changed
    finally:
        measured.model.generation_config = before
    assert [row.differs_at for row in rows] == [None, None]


def test_a_drafter_meets_each_prompt_once(measured):
    met = []

    def make():
        drafter, prompts = AdaptiveNgram(), []
        met.append(prompts)
        begin = drafter.begin
        drafter.begin = lambda prompt: (prompts.append(tuple(prompt)), begin(prompt))
        return drafter

    prompts = [PROMPT, Question("2", "pattern", encode("1 2 3"))]
    list(measure(measured, prompts, [METHODS["plain"], replace(METHODS["anpd"], recipe=Making(make))], SHORT))
    assert [len(prompts) for prompts in met] == [1, 2, 2]  # one that warms up, then one for each round
    assert all(len(set(prompts)) == len(prompts) for prompts in met)


def test_per_step_is_per_step():
    assert row().per_step == {
        "tokens_per_step": 2.0,
        "rows_per_step": 5.0,
        "guesses_per_step": 3.5,
        "accepted_per_step": 1.0,
        "drafter_ms": 2.0,
    }


@pytest.mark.parametrize(
    ("tokens", "judged"),
    [((4, 9), 2), ((7, 9), 1), ((4, 1, 9), 2), ((9,), 1)],  # none is made for what follows 7, or 4 1
)
def test_a_token_is_judged_where_a_guess_was_made_for_it(tokens, judged):
    draft = Draft((4, 7, 1, 9), (-1, -1, 0, 1), num_lookahead=1)
    step = verified(tokens, draft)
    assert num_judged(step) == judged
    assert num_judged(replace(step, finish_reason="length")) == len(tokens) - 1, "an end is no rejection"
    assert num_judged(verified((4,))) == 0


def test_acceptance_is_a_share_of_the_judged():
    assert row().acceptance == row().as_dict()["acceptance"] == 4 / 6
    assert row(accepted=0, judged=0).acceptance is None


def accept_the_first_guess(draft, scores, commit) -> Verdict:
    """A verifier that does not look."""
    path = (0,) if draft and not commit(draft.tokens[0]) else ()
    token = scores.choose(len(path))
    commit(token)
    return Verdict(path, token)


def test_a_wrong_token_ends_the_run_in_float32_and_is_counted_in_half_precision(measured, monkeypatch):
    class Wrong:
        def begin(self, prompt):
            pass

        def propose(self, context, max_tokens):
            return Draft.chain([7])

        def observe(self, step):
            pass

    methods = [METHODS["plain"], replace(METHODS["anpd"], name="wrong", recipe=Making(Wrong))]
    right = [row.differs_at for (_, row) in measure(measured, [PROMPT], methods, SHORT)]
    monkeypatch.setattr(run, "decode", partial(decode, verify=accept_the_first_guess))
    with pytest.raises(TextChanged, match=r"abc .float32, greedy., method wrong: another token after 1 "):
        list(measure(measured, [PROMPT], methods, SHORT))
    half = MeasuredModel(load_model("tiny", "bfloat16", "cpu"), asked_exact=False)
    ((plain, wrong),) = measure(half, [PROMPT], methods, SHORT)
    assert right == [None] and plain.difference is None and "bfloat16" in wrong.difference
    assert wrong.differs_at == 1 and wrong.gap >= 0 and not wrong.as_dict()["identical"]
    assert [line["same_text"] for line in summarise([plain, wrong])] == [1, 0] * 2


def test_of_transformers_own_loop_exactness_promises_nothing(monkeypatch):
    """It has another attention: in half precision another text of its is counted, and does not end the run."""
    exact = MeasuredModel(load_model("tiny", "bfloat16", "cpu"), asked_exact=True)
    tokens, stats = exact.own_loop(PROMPT.prompt, 8, None, {})
    monkeypatch.setattr(MeasuredModel, "own_loop", lambda *arguments: ([tokens[0], tokens[1] + 1, *tokens[2:]], stats))
    ((plain, own),) = measure(exact, [PROMPT], [METHODS["plain"], METHODS["transformers"]], SHORT)
    assert plain.difference is None and own.differs_at == 1
    monkeypatch.setattr(run, "decode", partial(decode, verify=accept_the_first_guess))
    with pytest.raises(TextChanged, match="method anpd"):
        list(measure(exact, [PROMPT], [METHODS["plain"], METHODS["anpd"]], SHORT))


def test_the_gap_is_that_of_the_best_two_logits(measured):
    ids = encode("a b c")
    logits = measured.model(input_ids=measured.model.dummy_inputs["input_ids"].new_tensor([ids])).logits[0, -1]
    best, second = logits.topk(2).values.tolist()
    assert gap(measured.target(), ids) == pytest.approx(best - second, abs=1e-4)


def test_answers_that_loop_are_never_in_the_headline():
    rows = [row(), row(speed=8.0, kind="story"), row(speed=100.0, looped=True)]
    (line,) = headline(summarise(rows))
    assert line["prompts"] == 2 and line["speed"] == pytest.approx(4.0) and line["least"] == 2.0
    looped = [line for line in summarise(rows) if line["looped"]]
    assert {(line["kind"], round(line["speed"])) for line in looped} == {("all", 100), ("code", 100)}


def test_an_answer_without_steps_has_no_rows(measured, monkeypatch):
    first = next(measure(measured, [PROMPT], [METHODS["plain"]], SHORT))
    assert first
    monkeypatch.setattr(MeasuredModel, "stop_tokens", range(measured.model.config.vocab_size))
    assert list(measure(measured, [PROMPT], [METHODS["plain"]], SHORT)) == [[]]


def test_the_page_needs_nothing_else_and_shows_every_method():
    pytest.importorskip("plotly")
    rows = [row(method=method, dtype=dtype) for dtype in ("float32", "bfloat16") for method in ("plain", "anpd", "<b>")]
    page = methods_page(summarise(rows), "<model>")
    assert page.count("plotly.js v") == 1 and page.count("Plotly.newPlot(") == 4
    assert not re.search(r"<(script|img|iframe)[^>]*\ssrc=|<link", page)
    for said in ("anpd", "2.00x", "&lt;model&gt;", "&lt;b&gt;", "bfloat16, greedy"):
        assert said in page
    assert "Plotly.newPlot(" not in methods_page(summarise([row(looped=True)]), "all loop")


def test_a_draft_model_has_the_same_tokens(measured, model_folder):
    other = load_model(str(model_folder), "float32", "cpu")
    with pytest.raises(ForetokenError, match="same tokenizer"):
        replace(measured, draft_model=other)


def test_the_command_writes_numbers_and_a_page(monkeypatch, capsys, tmp_path, model_folder):
    pytest.importorskip("plotly")
    (tmp_path / "prompts.jsonl").write_text(json.dumps(LINE) + "\n\n" + json.dumps(LINE | {"id": "2"}) + "\n")
    words = ["--model", model_folder, "--background", "none", "--prompts", tmp_path / "prompts.jsonl", "--limit", 1]
    words += ["--rounds", 1, "--max-new-tokens", 12, "--temperature", 0.9, "--method", "anpd", "--device", "cpu"]
    files = ["--out", tmp_path / "made" / "m.json", "--html", tmp_path / "m.html"]
    status, out, _ = call(monkeypatch, capsys, "bench", "methods", *words, *files)
    found = json.loads((tmp_path / "made" / "m.json").read_text())
    assert status == 0 and "| float32 | sampled at 0.9 | False | all | anpd | 1 | 1 |" in " ".join(out.split())
    assert found.keys() == {"provenance", "methods", "summary", "rows"}
    assert {"commit", "torch", "threads", "workload_sha256", "seed", "rounds"} <= found["provenance"].keys()
    assert str(tmp_path) not in json.dumps(found)
    assert found["methods"][1] == {"name": "anpd", "drafted": 7, "drafter": "anpd"}
    assert [(row["prompt"], row["method"], row["identical"]) for row in found["rows"]] == [
        ("abc", "plain", True),
        ("abc", "anpd", True),
    ]
    assert "sampled at 0.9" in (tmp_path / "m.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["methods", "--method", "magic"], "no method 'magic': choose from plain, anpd"),
        (["methods", "--prompts", "/nowhere/p.jsonl"], "could not be read: No such file"),
        (["methods", "--rounds", 0], "rounds is 0"),
        (["methods", "--method", "transformers", "--temperature", 0.8], "answers only greedily"),
        (["speculator", "--model", "toy"], "needs a model of transformers"),
        (["methods", "--model", "toy", "--draft-model", "tiny"], "leave out --draft-model"),
        (["methods", "--model", "toy", "--method", "early-exit"], "needs a model of transformers: leave it out"),
        (["methods", "--limit", 0], "limit is 0"),
        (["methods", "--max-new-tokens", 1], "max_new_tokens is 1"),
        (["methods", "--temperature", -1], "temperature is -1"),
        (["methods", "--dtype", "int3"], "no dtype 'int3'"),
        (["methods", "--model", "/nowhere/model"], "no model folder"),
        (["methods", "--out", "/dev/null/m.json"], "could not be written"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_status_2(monkeypatch, capsys, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(monkeypatch, capsys, "bench", *words)
    assert status == 2 and said in err and out == "" and err.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"id": "a", "kind": "b"}', json.dumps(LINE | {"prompt": 3}), 2 * (json.dumps(LINE) + "\n")],
)
def test_malformed_prompts_are_refused(text):
    with pytest.raises(ForetokenError, match="prompts"):
        parse_prompts(text, encode)


def test_the_prompts_of_the_package_are_of_five_kinds_and_all_differ():
    prompts = [json.loads(line) for line in bundled_prompts().splitlines()]
    kinds = Counter(question.kind for question in parse_prompts(bundled_prompts(), encode))
    assert kinds == {"code": 9, "edit": 9, "pattern": 6, "story": 6, "chat": 6}
    assert len({prompt["prompt"] for prompt in prompts}) == 36
    for prompt in prompts:
        if prompt["kind"] == "edit":
            ast.parse(prompt["prompt"].split("# Before:\n")[1].split("\n# After")[0])


def test_loops_are_told_from_repetition():
    text = half_predictable(400)
    assert not loops(text) and not loops([*text[:100], *text[:100]])
    for period in (1, 2, 7, 40, 64):
        assert loops([*text[:50], *(text[:period] * (2 + 200 // period))])
        assert not loops([*text[:50], *text[:period], *text[60:100]])


def test_a_method_that_needs_a_draft_model_is_left_out_without_one():
    needy = {"draft-model", "draft-model-chain", "draft-model-adaptive"}
    assert {method.name for method in choose_methods([], True, heads=True)} == set(METHODS)
    assert {method.name for method in choose_methods([], False, heads=True)} == set(METHODS) - needy
    for name in needy:
        with pytest.raises(ForetokenError, match="--draft-model"):
            choose_methods([name], False)


def test_methods_of_trained_heads_run_where_there_are_any(measured):
    headed = {name for name, method in METHODS.items() if method.needs_heads}
    assert {"speculator", "speculator-chain", "speculator-published", "mixed-speculator", "refined-speculator"} < headed
    assert not headed & {method.name for method in choose_methods([], True)}
    with pytest.raises(ForetokenError, match="there are none for this model"):
        without = replace(measured, speculator=None)
        list(measure(without, [PROMPT], choose_methods(["speculator"], False), SHORT))


def test_a_drafter_with_options_is_a_method_too():
    plain, exits, short = choose_methods(["early-exit:layer=1", "anpd:max_order=3"], False)
    assert (plain.name, exits.name, short.name) == ("plain", "early-exit:layer=1", "anpd:max_order=3")
    assert (exits.recipe, exits.drafted) == (EarlyExit(layer=1), None), "what pays"
    assert (short.recipe, short.drafted) == (Anpd(max_order=3), 7), "which knows nothing of its chances"
    for text in ("magic", "anpd:depth=3", "draft-model:model=tiny"):
        with pytest.raises(ForetokenError, match=r"There is no method|no option 'depth'"):
            choose_methods([text], True)
