"""vLLM with our drafter against vLLM without: the same text, whatever a request asks for and whatever becomes of it.

Several engines run in this process: the first takes a minute to import, each further one some seconds. What the budget
decides depends on the clock, so that all is drafted here that the drafter knows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import foretoken
from foretoken.hosts.vllm.states import MAX_AGE
from foretoken.measure.prompts import bundled_prompts
from foretoken.measure.vllm import ENVIRONMENT
from helpers.vllm_rows import DraftsAll

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
MODEL = str(Path(foretoken.__file__).parent / "models" / "tiny")
K, LENGTH = 6, 800


engines: list[Any] = []  # kept to the end: one that goes takes what all in this process share


@pytest.fixture(scope="module")
def vllm() -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    vllm = pytest.importorskip("vllm")
    from foretoken.hosts.vllm.rebinding import allow_numba

    allow_numba()
    return vllm


def new_engine(vllm: Any, drafts: bool, max_draft: Any = K, **options: Any) -> Any:
    config = {"method": "custom_class", "model": "foretoken.hosts.vllm.Drafter", "num_speculative_tokens": max_draft}
    given = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": LENGTH,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 192,  # less than a prompt has: prompts are read in pieces
        "speculative_config": config if drafts else None,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "disable_log_stats": True,
    }
    llm = vllm.LLM(MODEL, **given | options)
    engines.append(llm)
    if drafts:
        drafter_of(llm).budget = DraftsAll()
    return llm


def runner_of(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


def drafter_of(llm: Any) -> Any:
    return runner_of(llm).drafter


@pytest.fixture(scope="module")
def pair(vllm) -> tuple[Any, Any]:
    """An engine without drafts and one with."""
    return new_engine(vllm, False), new_engine(vllm, True)


@cache
def prompts(num: int) -> list[str]:
    """Of all kinds, the kinds mixed."""
    rows = [json.loads(line) for line in bundled_prompts().splitlines()]
    return [row["prompt"] for row in sorted(rows, key=lambda row: row["id"][::-1])][:num]


def answers(llm: Any, texts: Sequence[Any], sampling: Any) -> list[tuple[Any, ...]]:
    outputs = [output.outputs[0] for output in llm.generate(list(texts), sampling, use_tqdm=False)]
    return [(tuple(one.token_ids), one.text, one.finish_reason, one.stop_reason) for one in outputs]


@contextmanager
def drafting(llm: Any) -> Iterator[None]:
    """See that something is drafted and kept: a comparison without drafts would say nothing."""
    budget = drafter_of(llm).budget
    before = budget.num_drafted, budget.num_kept
    yield
    assert budget.num_drafted > before[0]
    assert budget.num_kept > before[1]


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Lily", "Tom"]}, "happy": {"type": "boolean"}},
    "required": ["name", "happy"],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    "stop strings": {"stop": ["\n\n", "return", "the "]},
    "stop tokens": {"stop_token_ids": [198, 199, 200, 13, 14, 15, 16], "ignore_eos": False},
    "at least": {"min_tokens": 20, "stop": ["e"]},
    "bad words": {"bad_words": ["self", "the"]},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_sixteen_requests_at_once_get_the_same_text(vllm, pair, name):
    sampling = vllm.SamplingParams(**{"temperature": 0.0, "max_tokens": 60, "ignore_eos": True} | SETTINGS[name])
    plain = answers(pair[0], prompts(16), sampling)
    with drafting(pair[1]):
        assert answers(pair[1], prompts(16), sampling) == plain
    # The prompts are in vLLM's prefix cache now, and the answers in our memory.
    assert answers(pair[1], prompts(16), sampling) == plain


def test_logprobs_are_the_same(vllm, pair):
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=40, logprobs=3, ignore_eos=True)
    plain, drafted = ([o.outputs[0] for o in llm.generate(prompts(8), sampling, use_tqdm=False)] for llm in pair)
    for one, other in zip(plain, drafted, strict=True):
        assert one.token_ids == other.token_ids
        for before, after in zip(one.logprobs, other.logprobs, strict=True):
            assert set(before) == set(after)
            for token in before:
                assert after[token].logprob == pytest.approx(before[token].logprob, abs=1e-3)


def test_answers_after_a_json_schema_are_the_same(vllm, pair):
    from vllm.sampling_params import StructuredOutputsParams

    form = StructuredOutputsParams(json=SCHEMA)
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=80, structured_outputs=form)
    plain = answers(pair[0], prompts(6), sampling)
    assert answers(pair[1], prompts(6), sampling) == plain
    assert all(set(json.loads(text)) == {"name", "happy"} for _, text, *_ in plain)


def test_different_requests_beside_each_other_get_the_same_text(vllm, pair):
    samplings = [
        vllm.SamplingParams(**{"temperature": 0.0, "max_tokens": 10 + 5 * i, "ignore_eos": True} | setting)
        for i, setting in enumerate([*SETTINGS.values()] * 2)
    ]
    texts = prompts(len(samplings))
    assert answers(pair[1], texts, samplings) == answers(pair[0], texts, samplings)


def test_texts_that_fill_the_context_are_the_same(vllm, pair):
    """And the others that are decoded beside them are drafted for to the end."""
    tokenizer = pair[0].get_tokenizer()
    ids = tokenizer(" ".join(prompts(8)))["input_ids"]
    texts = [{"prompt_token_ids": ids[i : i + LENGTH - 72]} for i in range(6)] + [{"prompt_token_ids": ids[:40]}]
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True)
    plain = answers(pair[0], texts, sampling)
    with drafting(pair[1]):
        assert answers(pair[1], texts, sampling) == plain
    assert [len(tokens) for tokens, *_ in plain] == [72] * 6 + [300]


def test_requests_that_are_aborted_leave_the_others_as_they_are(vllm, pair):
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    plain = answers(pair[0], prompts(8), sampling)
    engine = pair[1].llm_engine
    for number, prompt in enumerate(prompts(8)):
        engine.add_request(f"some {number}", prompt, sampling)
    found, steps = {}, 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                found[output.request_id] = tuple(output.outputs[0].token_ids)
        steps += 1
        if steps == 8:
            engine.abort_request([f"some {number}" for number in range(0, 8, 2)])
    assert found == {f"some {number}": plain[number][0] for number in range(1, 8, 2)}


def test_no_state_is_left_of_requests_that_ended(vllm, pair):
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=2 * MAX_AGE, ignore_eos=True)
    drafter_of(pair[1]).budget.allows = lambda num_requests: False  # a token a step
    answers(pair[1], prompts(1), sampling)
    del drafter_of(pair[1]).budget.allows
    assert len(drafter_of(pair[1]).states) == 1


def test_preempted_requests_get_the_same_text(vllm):
    """The cache holds some of the sixteen requests only: others are thrown out and read again."""
    small = {"num_gpu_blocks_override": 12, "enable_prefix_caching": False}
    plain, drafted = new_engine(vllm, False), new_engine(vllm, True, **small)
    scheduler = drafted.llm_engine.engine_core.engine_core.scheduler
    preempted = []
    original = scheduler._preempt_request
    scheduler._preempt_request = lambda request, *args, **kw: (
        preempted.append(request),
        original(request, *args, **kw),
    )[1]
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=120, ignore_eos=True)
    texts = [prompt[-300:] for prompt in prompts(16)]
    with drafting(drafted):
        assert answers(drafted, texts, sampling) == answers(plain, texts, sampling)
    assert preempted


def test_the_budget_of_the_clock_changes_no_text(vllm, pair):
    from foretoken.hosts.vllm.budget import BatchBudget

    drafter = drafter_of(pair[1])
    everything, drafter.budget = drafter.budget, BatchBudget()
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=80, ignore_eos=True)
    try:
        assert answers(pair[1], prompts(12), sampling) == answers(pair[0], prompts(12), sampling)
    finally:
        drafter.budget = everything


def test_no_draft_is_longer_than_was_said(vllm, pair):
    """One draft that is longer than was said ends vLLM."""
    from foretoken.hosts.vllm.states import States

    drafter = drafter_of(pair[1])
    longest = []
    propose = drafter.propose
    drafter.propose = lambda *a, **kw: (longest.append(max(map(len, drafts := propose(*a, **kw)))), drafts)[1]
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    answers(pair[1], ["a b a b a b a b a b a b"], sampling)
    del drafter.propose
    assert max(longest) == K
    assert isinstance(drafter.states, States)


@pytest.mark.parametrize("most", [129, 600])
def test_too_many_tokens_are_refused_with_one_sentence(vllm, most):
    with pytest.raises(
        Exception, match=f"num_speculative_tokens is {most}: give a whole number from 1 to 128, such as 8"
    ):
        new_engine(vllm, True, most)


def test_the_benchmark_finds_the_same_texts_and_counts_steps(vllm, pair):
    from foretoken.measure.prompts import Question
    from foretoken.measure.vllm import Served, measure

    options = {"dtype": "float32", "max_num_seqs": 4, "max_model_len": LENGTH, "enforce_eager": True}
    served = [Served(name, MODEL, options, K) for name in ("none", "foretoken")]
    engines.extend(one.llm for one in served)
    encode = served[0].llm.get_tokenizer()
    questions = [Question(str(i), "any", encode(text)["input_ids"]) for i, text in enumerate(prompts(5))]
    plain, drafted = measure(served, questions, concurrency=3, num_requests=7, max_new_tokens=20)
    for load in (plain, drafted):
        assert (load.num_tokens, len(load.texts), len(load.token_seconds)) == (7 * 20, 7, 7)
        assert load.cpu_seconds > 0
    assert plain.num_turns == 7 * 20
    assert drafted.row(plain)["other texts"] == 0
    drafted.texts[3] = [*drafted.texts[3][:-1], -1]
    assert drafted.row(plain)["other texts"] == 1


def test_no_tokens_are_refused(vllm):
    with pytest.raises(Exception, match="num_speculative_tokens"):
        new_engine(vllm, True, 0)


def test_another_vllm_is_refused_with_one_sentence(vllm, monkeypatch):
    monkeypatch.setattr(vllm, "__version__", "0.99.1")
    with pytest.raises(Exception, match=r"This is vLLM 0\.99\.1, and Foretoken was tested with 0\.32 only"):
        new_engine(vllm, True)
