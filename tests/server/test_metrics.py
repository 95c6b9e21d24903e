"""What /metrics counts is what the answers say."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install 'foretoken[serve]'")
pytest.importorskip("httpx2", reason="the client of these tests is not installed: scripts/setup dev")

import httpx2 as httpx

from foretoken import LanguageModel, load
from foretoken.core.contracts import Step
from foretoken.core.draft import Draft
from foretoken.server.answers import PlainSteps
from helpers.serving import metrics, serving

QUESTION = {"model": "toy", "prompt": "abc abc abc", "max_tokens": 50, "foretoken": {"budget": 7}}


@pytest.fixture
def own() -> LanguageModel:
    return load("toy", background=None)


def test_the_counts_are_those_of_the_answers(own):
    with serving(own) as client:
        answers = [client.post("/v1/completions", json=QUESTION | {"n": n}).json() for n in (1, 2)]
        counted = metrics(client)
    total = {
        name: sum(answer[place][name] for answer in answers)
        for place, names in (("usage", ("completion_tokens",)), ("foretoken", ("steps", "drafted", "accepted")))
        for name in names
    }
    assert counted["foretoken:generation_tokens_total{}"] == total["completion_tokens"] == 150
    assert counted["foretoken:prompt_tokens_total{}"] == 33  # read once for each answer
    assert counted["foretoken:spec_decode_num_draft_tokens_total{}"] == total["drafted"] > 0
    assert counted["foretoken:spec_decode_num_accepted_tokens_total{}"] == total["accepted"] > 0
    assert counted["foretoken:rows_per_forward_count{}"] == total["steps"]
    assert counted["foretoken:rows_per_forward_sum{}"] == total["steps"] + total["drafted"]
    at = [value for name, value in counted.items() if "accepted_tokens_per_pos_total" in name]
    assert sum(at) == total["accepted"] and at == sorted(at, reverse=True)
    assert counted['foretoken:request_success_total{finished_reason="length",}'] == 3
    for name in ("time_to_first_token_seconds", "request_queue_time_seconds", "e2e_request_latency_seconds"):
        assert counted[f"foretoken:{name}_count{{}}"] == 2
    assert counted["foretoken:num_requests_running{}"] == counted["foretoken:num_requests_waiting{}"] == 0


def test_the_seconds_saved_are_the_sum_of_what_the_answers_say(own):
    with serving(own) as client:
        saved = [client.post("/v1/completions", json=QUESTION).json()["foretoken"]["seconds_saved"] for _ in range(3)]
        assert metrics(client)["foretoken:seconds_saved{}"] == pytest.approx(sum(saved))
        plain = client.post("/v1/completions", json=QUESTION | {"foretoken": {"drafter": "none"}}).json()
        assert plain["foretoken"]["seconds_saved"] is None


def test_what_was_not_answered_is_counted_by_why(own):
    with serving(own, seconds=0.5) as client:
        client.post("/v1/completions", json=QUESTION | {"prompt": "\N{SNOWMAN}"})
        client.post("/v1/completions", json=QUESTION | {"max_tokens": 10**7})
        with pytest.raises(httpx.TimeoutException):
            client.post("/v1/completions", json=QUESTION | {"max_tokens": 10**7}, timeout=0.1)
        while (counted := metrics(client))["foretoken:num_requests_running{}"]:
            pass
    for reason in ("error", "timeout", "abort"):
        assert counted[f'foretoken:request_failure_total{{,reason="{reason}"}}'] == 1


def test_memory_is_told_for_each_key_and_nobody_is_named(own):
    keys = {"alice": "sk-alice-0123456789", "bob": "sk-bob-0123456789ab"}
    with serving(own, keys) as client:
        for key in keys.values():
            for namespace in ("letters", "poems"):
                body = QUESTION | {"foretoken": {"namespace": namespace}}
                client.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        text = client.get("/metrics").text
    sizes = re.findall(r'foretoken:memory_bytes{owner="[0-9a-f]{8}"} (\S+)', text)
    assert len(sizes) == 2 and sum(map(float, sizes)) == sum(own.memories.sizes().values()) > 0
    assert not re.search("alice|bob|letters|poems|sk-", text)


def test_what_plain_steps_take_is_learned_from_plain_steps_alone():
    plain = PlainSteps(load("toy", drafter="none", background=None))
    drafted = Step(Draft.chain([1, 2, 3]), (1, 2, 9), path=(0, 1), propose_seconds=0.5)
    assert plain.saved(drafted, 2.0) == 0.0, "nothing is known yet"
    assert plain.saved(Step(Draft(), (7,), propose_seconds=0.25), 1.25) == pytest.approx(-0.25)  # a plain one takes 1 s
    assert plain.saved(drafted, 2.0) == pytest.approx(1.0)
