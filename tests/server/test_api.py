"""What a client gets: the library's text, in OpenAI's shapes, and what drafting did for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install 'foretoken[serve]'")
pytest.importorskip("httpx2", reason="the client of these tests is not installed: scripts/setup dev")

from foretoken import LanguageModel, load
from foretoken.engines.toy import ToyEngine

CHAT = [{"role": "user", "content": "hi hi hi"}]
COMPLETION, CONVERSATION = "/v1/completions", "/v1/chat/completions"


def ask(client: Any, **fields: Any) -> dict[str, Any]:
    """A whole completion, or chat if there are messages."""
    path = CONVERSATION if "messages" in fields else COMPLETION
    answer = client.post(path, json={"model": "toy"} | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def chunks(client: Any, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed one."""
    path = CONVERSATION if "messages" in fields else COMPLETION
    with client.stream("POST", path, json={"model": "toy", "stream": True} | fields) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def said(choice: dict[str, Any]) -> str:
    """The text of a choice, whole or not, of either kind."""
    part = choice.get("message") or choice.get("delta") or choice
    return part.get("content", part.get("text", ""))


def test_a_completion_is_the_librarys_text(client, lm):
    answer = ask(client, prompt="abc abc", max_tokens=30, temperature=0.9, seed=5)
    expected = lm.generate("abc abc", max_new_tokens=30, temperature=0.9, seed=5)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (expected.text, "length")
    assert answer["object"] == "text_completion" and answer["model"] == "toy"
    assert answer["usage"]["prompt_tokens"] == 7 and answer["usage"]["completion_tokens"] == 30
    assert answer["usage"]["total_tokens"] == 37


def test_a_chat_is_the_librarys_text_after_the_chat_template(client, lm):
    answer = ask(client, messages=CHAT, max_completion_tokens=30)
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == lm.generate(CHAT, max_new_tokens=30).text
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")


def test_parts_of_a_content_are_joined_and_a_developer_is_the_system(client):
    parts = [{"type": "text", "text": "hi "}, {"type": "text", "text": "there"}]
    one = ask(client, messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}])
    two = ask(client, messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi there"}])
    assert one["choices"] == two["choices"]


def test_what_an_answer_has_as_null_may_come_back_with_the_conversation(client):
    (choice,) = ask(client, messages=CHAT, max_tokens=8)["choices"]
    turn = choice["message"] | {"tool_calls": None, "function_call": None, "audio": None, "annotations": []}
    assert ask(client, messages=[*CHAT, turn, *CHAT], max_tokens=8)["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("prompt", [{"prompt": "abc abc"}, {"messages": CHAT}])
@pytest.mark.parametrize("stop", [None, "STOP"])
def test_a_stream_makes_up_the_whole_answer(client, lm, prompt, stop):
    options = {**prompt, "max_tokens": 40, "temperature": 0.7, "seed": 2, "n": 2}
    if stop:
        stop = said(ask(client, **options)["choices"][0])[12:15]
    whole = ask(client, **options, stop=stop)
    streamed = chunks(client, **options, stop=stop, stream_options={"include_usage": True})
    *parts, last = streamed
    for choice in whole["choices"]:
        own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
        assert "".join(map(said, own)) == said(choice)
        assert [one["finish_reason"] for one in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all(part["usage"] is None for part in parts)
    assert len({part["id"] for part in streamed}) == 1


def test_without_being_asked_for_a_stream_says_nothing_of_usage_nor_of_its_steps(client):
    streamed = chunks(client, messages=CHAT, max_tokens=8)
    assert all("usage" not in chunk for chunk in streamed)
    assert [("foretoken" in chunk) for chunk in streamed] == [False] * (len(streamed) - 1) + [True]
    assert streamed[0]["choices"][0]["delta"]["role"] == "assistant"


def test_a_stop_string_ends_the_text_and_is_not_in_it(client):
    whole = ask(client, prompt="abc", max_tokens=60)["choices"][0]["text"]
    stop = whole[20:23]
    for given in (stop, ["never there", stop]):
        (choice,) = ask(client, prompt="abc", max_tokens=60, stop=given)["choices"]
        assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")


def test_several_answers_have_seeds_one_after_the_other(client, lm):
    answer = ask(client, prompt="abc", n=3, max_tokens=12, temperature=1.1, seed=40)
    texts = [lm.generate("abc", max_new_tokens=12, temperature=1.1, seed=40 + i).text for i in range(3)]
    assert [choice["text"] for choice in answer["choices"]] == texts and len(set(texts)) == 3
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == 3 and answer["usage"]["completion_tokens"] == 36


def test_several_prompts_are_answered_in_order(client, lm):
    answer = ask(client, prompt=["abc", "hello"], n=2, max_tokens=9)
    texts = [lm.generate(prompt, max_new_tokens=9).text for prompt in ("abc", "abc", "hello", "hello")]
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert answer["usage"]["prompt_tokens"] == 8


def test_a_completion_has_sixteen_tokens_unless_told_otherwise(client):
    assert ask(client, prompt="abc")["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("how", [{"temperature": 0}, {"temperature": 1.3, "seed": 9}])
@pytest.mark.parametrize("drafter", ["mixed", "ngram", "anpd", "prompt-lookup", "recycle", "lookahead", "speculator"])
def test_whatever_drafts_the_text_is_that_of_plain_decoding(client, drafter, how):
    question = {"prompt": "abc abc abc abc", "max_tokens": 40, **how}
    plain = ask(client, **question, foretoken={"drafter": "none"})
    drafted = ask(client, **question, foretoken={"drafter": drafter, "budget": 7})
    assert drafted["choices"] == plain["choices"]
    assert plain["foretoken"]["drafter"] == "none" and plain["foretoken"]["drafted"] == 0
    assert plain["foretoken"]["steps"] == 39 >= drafted["foretoken"]["steps"]
    assert drafted["foretoken"]["drafter"] == drafter and drafted["foretoken"]["drafted"] > 0


def test_a_prediction_is_drafted_from_and_what_came_true_is_counted(client, lm):
    question = {"messages": CHAT, "max_tokens": 60}
    text = lm.generate(CHAT, max_new_tokens=60).text
    nobodys = {"namespace": None, "budget": 7}
    without = ask(client, **question, foretoken=nobodys)
    for content in (text, [{"type": "text", "text": text}]):
        answer = ask(client, **question, prediction={"type": "content", "content": content}, foretoken=nobodys)
        assert answer["choices"] == without["choices"]
        details, drafting = answer["usage"]["completion_tokens_details"], answer["foretoken"]
        assert details["accepted_prediction_tokens"] == drafting["accepted"] > 30 > without["foretoken"]["accepted"]
        assert details["rejected_prediction_tokens"] == drafting["drafted"] - drafting["accepted"]
        assert drafting["acceptance_length"] > 2 * without["foretoken"]["acceptance_length"]
    off = ask(client, **question, prediction={"type": "content", "content": text}, foretoken={"drafter": "none"})
    assert off["choices"] == without["choices"] and off["foretoken"]["drafted"] == 0


def test_references_and_a_namespace_are_drafted_from(client, lm):
    question = {"prompt": "xyz", "max_tokens": 60}
    text = lm.generate("xyz", max_new_tokens=60).text
    plain = ask(client, **question, foretoken={"budget": 7, "namespace": None})["foretoken"]["accepted"]
    drafting = {"budget": 7, "namespace": None, "references": [text]}
    assert ask(client, **question, foretoken=drafting)["foretoken"]["accepted"] > plain + 20
    first, again, other = (
        ask(client, **question, foretoken={"budget": 7, "namespace": name})["foretoken"]["accepted"]
        for name in ("letters", "letters", "poems")
    )
    assert first == other == plain and again > plain + 20


def test_whoever_asks_sees_what_each_step_guessed(client):
    streamed = chunks(client, prompt="abc abc abc", max_tokens=60, foretoken={"budget": 7, "drafter": "anpd"})
    *parts, last = streamed
    for part in parts:
        assert part["choices"][0]["text"].startswith(part["foretoken"]["guessed"])
        assert len(part["foretoken"]["guessed"]) <= part["foretoken"]["accepted"] <= part["foretoken"]["drafted"]
        is_all_right = part["foretoken"]["accepted"] == part["foretoken"]["drafted"]
        assert is_all_right or part["foretoken"]["wrong"], "a chain of guesses has a wrong one at its end"
        assert not (is_all_right and part["foretoken"]["wrong"])
    assert sum(part["foretoken"]["accepted"] for part in parts) == last["foretoken"]["accepted"]
    assert sum(part["foretoken"]["tokens"] for part in parts) == 60


def test_settings_that_change_nothing_are_taken_by_an_engine_that_has_none_of_them(client):
    neutral = {"top_p": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "user": "u"}
    assert ask(client, prompt="abc", **neutral)["choices"] == ask(client, prompt="abc")["choices"]


def test_the_model_is_listed(client):
    (card,) = client.get("/v1/models").json()["data"]
    assert card["id"] == "toy" and card["object"] == "model"
    assert client.get("/v1/models/toy").json() == card
    assert client.get("/v1/models/other/one").status_code == 404


def test_the_server_says_how_it_is_and_what_it_takes(client):
    assert client.get("/health").json() | {"version": ""} == {"status": "ok", "version": "", "running": 0, "waiting": 0}
    described = client.get("/openapi.json").json()
    assert {COMPLETION, CONVERSATION} <= described["paths"].keys()
    fields = described["components"]["schemas"]["ChatAsked"]["properties"]
    assert {"messages", "prediction", "foretoken", "seed"} <= fields.keys()


def test_the_bundled_model_answers_with_every_setting():
    """All that the toy engine does not choose by: penalties, nucleus, and a real chat template."""
    from helpers.serving import serving

    lm = load("tiny", dtype="float32", background=None)
    options = {"temperature": 0.9, "top_p": 0.9, "presence_penalty": 0.4, "frequency_penalty": 0.3, "seed": 11}
    with serving(lm) as client:
        answer = ask(client, messages=CHAT, max_tokens=24, **options)
        assert said(answer["choices"][0]) == lm.generate(CHAT, max_new_tokens=24, **options).text
        streamed = chunks(client, messages=CHAT, max_tokens=24, **options, foretoken={"drafter": "none"})
        assert "".join(said(chunk["choices"][0]) for chunk in streamed) == said(answer["choices"][0])
        sampled = ask(client, messages=CHAT, max_tokens=24, temperature=0.9, seed=11)
        assert sampled["choices"] != answer["choices"], "the settings above change nothing"


def test_a_request_says_whether_it_must_be_exact():
    """In float32 the bundled model is not exact unless somebody insists; a model that cannot be refuses."""
    from helpers.serving import serving

    question = {"prompt": "def area(width, height):", "max_tokens": 24, "temperature": 0.8, "seed": 3}
    lm = load("tiny", dtype="float32", background=None, exact=False)
    with serving(lm) as client:
        for asked, found in ((None, False), (True, True), (False, False)):
            plain, drafted = (
                ask(client, **question, logprobs=0, foretoken={"exact": asked, "namespace": None} | drafting)
                for drafting in ({"drafter": "none"}, {"drafter": "mixed", "budget": 7})
            )
            assert plain["foretoken"]["exact"] is drafted["foretoken"]["exact"] is found
            if found:
                assert plain["choices"] == drafted["choices"], "every bit of every logit"
        assert not lm.engine.exact, "the server's own setting stays"
    library = lm.generate(question["prompt"], max_new_tokens=24, temperature=0.8, seed=3, exact=True)
    assert library.exact and library.text == said(plain["choices"][0])


def test_what_cannot_be_exact_is_refused():
    from helpers.serving import serving

    class Inexact(ToyEngine):
        exact = False

    with serving(LanguageModel(Inexact(), background=None)) as client:
        answer = client.post(COMPLETION, json={"model": "toy", "prompt": "a", "foretoken": {"exact": True}})
        assert answer.status_code == 400 and "cannot be exact" in answer.json()["error"]["message"]
        assert ask(client, prompt="a", foretoken={"exact": "auto"})["foretoken"]["exact"] is False
