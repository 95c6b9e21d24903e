"""Each API key is a world of its own: what one is drafted from, another never sees."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install 'foretoken[serve]'")
pytest.importorskip("httpx2", reason="the client of these tests is not installed: scripts/setup dev")

from foretoken import LanguageModel, load
from foretoken.core.budget import AdaptiveBudget
from foretoken.memory.history import History
from foretoken.memory.prefixes import BLOCK, Prefixes
from helpers.serving import metrics, serving

KEYS = {"alice": "sk-alice-0123456789", "bob": "sk-bob-0123456789ab"}
QUESTION = {"model": "toy", "prompt": "abc abc", "max_tokens": 60}


def ask(client: Any, name: str, **drafting: Any) -> dict[str, Any]:
    """Somebody's answer, drafted for by a fixed budget, so that no clock decides."""
    answer = client.post(
        "/v1/completions",
        json=QUESTION | {"foretoken": {"budget": 7} | drafting},
        headers={"Authorization": f"Bearer {KEYS[name]}"},
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def steps(client: Any, name: str) -> list[dict[str, Any]]:
    """What each step of somebody's answer drafted and accepted."""
    body = QUESTION | {"foretoken": {"budget": 7}, "stream": True}
    with client.stream("POST", "/v1/completions", json=body, headers={"Authorization": f"Bearer {KEYS[name]}"}) as got:
        return [line for line in got.iter_lines() if '"drafted"' in line and '"steps"' not in line]


def without_names(lines: list[str]) -> list[str]:
    """Chunks without the request's own id, its time and what its forwards took."""
    return [re.sub('"seconds":[^,}]+', "", line.partition('"choices"')[2]) for line in lines]


@pytest.mark.parametrize("as_history", [False, True])
def test_bobs_drafts_and_steps_are_the_same_whether_or_not_alice_was_ever_served(tmp_path, as_history):
    seen = []
    for alice_asks in (False, True):
        history = History(tmp_path / f"{alice_asks}.sqlite") if as_history else None
        lm = LanguageModel(load("toy", background=None).engine, background=None, history=history)
        with serving(lm, KEYS) as client:
            for _ in range(3 * alice_asks):
                ask(client, "alice")
                ask(client, "alice", namespace="bob/default")
                ask(client, "alice", namespace="default")
            seen.append([without_names(steps(client, "bob")), without_names(steps(client, "bob"))])
    assert seen[0] == seen[1]
    first, second = seen[0]
    assert len(second) < len(first) / 2, "bob is drafted for from his own first answer: the control"


def test_names_do_not_reach_into_anothers_namespace(lm):
    with serving(lm, KEYS) as client:
        first = ask(client, "alice", namespace="x")["foretoken"]
        assert ask(client, "alice", namespace="x")["foretoken"]["accepted"] > first["accepted"] + 20
        for name in ("x", "alice/x", "../alice/x", "/alice/x"):
            assert ask(client, "bob", namespace=name)["foretoken"]["accepted"] == first["accepted"]


def test_what_a_budget_has_learned_stays_with_its_key():
    lm = load("toy", background=None)
    with serving(lm, KEYS) as client:
        client.post("/v1/completions", json=QUESTION, headers={"Authorization": f"Bearer {KEYS['alice']}"})
    plain_steps = AdaptiveBudget(costs=lm.costs).costs.num_plain
    assert lm.memories.of("alice/default").new_budget(lm.costs).costs.num_plain > plain_steps
    assert lm.memories.of("bob/default").new_budget(lm.costs).costs.num_plain == plain_steps


def test_without_a_key_there_is_nothing_and_no_key_is_logged_or_told(lm, caplog):
    with serving(lm, KEYS) as client, caplog.at_level(0):
        for path in ("/v1/models", "/v1/models/toy"):
            assert client.get(path).status_code == 401
        for headers in ({}, {"Authorization": "Bearer sk-wrong-secret-key"}, {"Authorization": "Basic c2VjcmV0"}):
            answer = client.post("/v1/completions", json=QUESTION, headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["type"] == "invalid_request_error"
            assert "secret" not in answer.text
        ask(client, "alice")
        assert client.get("/health").status_code == 200
    assert "sk-" not in caplog.text and "abc abc" not in caplog.text


def test_a_next_turn_is_read_from_where_the_last_one_began_and_by_nobody_else():
    lm = load("tiny", dtype="float32", background=None, exact=False)
    lm.prefixes = Prefixes(1 << 28)
    turns = [{"role": "user", "content": "Tell me of ships and harbours. " * 60}]

    def ask_turns(client: Any, name: str, **drafting: Any) -> tuple[str, int]:
        body = {"model": "toy", "messages": turns, "max_tokens": 8, "foretoken": drafting}
        headers = {"Authorization": f"Bearer {KEYS[name]}"}
        answer = client.post("/v1/chat/completions", json=body, headers=headers).json()
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return answer["choices"][0]["message"]["content"], cached

    with serving(lm, KEYS) as client:
        text, cached = ask_turns(client, "alice")
        assert cached == 0 and ask_turns(client, "alice") == (text, BLOCK)
        for name, drafting in (("bob", {}), ("alice", {"namespace": "other"}), ("alice", {"namespace": None})):
            assert ask_turns(client, name, **drafting) == (text, 0)
        turns += [{"role": "assistant", "content": text}, {"role": "user", "content": "And then?"}]
        told, cached = ask_turns(client, "alice")
        assert cached == BLOCK and ask_turns(client, "alice", namespace=None) == (told, 0)
        counted = metrics(client)
    assert counted["foretoken:prefix_cache_hits_total{}"] == 2 * BLOCK
    assert counted["foretoken:prefix_cache_bytes{}"] == lm.prefixes.nbytes > 0
