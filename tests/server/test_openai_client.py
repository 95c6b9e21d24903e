"""OpenAI's own client, with its usual calls, unchanged."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install 'foretoken[serve]'")
pytest.importorskip("openai", reason="OpenAI's client is not installed: scripts/setup dev")

import openai

from helpers.serving import serving

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi hi hi"}]


@pytest.fixture(scope="module")
def ai(client):
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as ai:
        yield ai


def test_models(ai):
    assert [model.id for model in ai.models.list()] == ["toy"]
    assert ai.models.retrieve("toy").owned_by == "foretoken"


def test_a_chat_and_its_next_turn(ai, lm):
    answer = ai.chat.completions.create(model="toy", messages=CHAT, max_completion_tokens=20, temperature=0.8, seed=3)
    expected = lm.generate(CHAT, max_new_tokens=20, temperature=0.8, seed=3)
    assert answer.choices[0].message.content == expected.text and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 20
    turns = [*CHAT, answer.choices[0].message, {"role": "user", "content": "more"}]
    assert ai.chat.completions.create(model="toy", messages=turns, max_tokens=8).choices[0].message.content
    turns[2] = answer.choices[0].message.model_dump()
    assert ai.chat.completions.create(model="toy", messages=turns, max_tokens=8).choices[0].message.content


def test_a_stream_with_usage(ai, lm):
    stream = ai.chat.completions.create(
        model="toy", messages=CHAT, max_tokens=30, stream=True, stream_options={"include_usage": True}
    )
    *parts, last = stream
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == lm.generate(CHAT, max_new_tokens=30).text
    assert last.usage.completion_tokens == 30 and parts[-1].choices[0].finish_reason == "length"


def test_the_clients_own_helper_for_streams_puts_the_answer_together(ai, lm):
    text = lm.generate(CHAT, max_new_tokens=30).text
    with ai.chat.completions.stream(model="toy", messages=CHAT, stop=text[20:24]) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == text[:20]


def test_completions_whole_and_streamed(ai, lm):
    text = lm.generate("abc", max_new_tokens=16).text
    assert ai.completions.create(model="toy", prompt="abc").choices[0].text == text
    parts = ai.completions.create(model="toy", prompt="abc", stream=True)
    assert "".join(part.choices[0].text for part in parts) == text


def test_a_prediction_and_our_own_object(ai, lm):
    text = lm.generate(CHAT, max_new_tokens=40).text
    answer = ai.chat.completions.create(
        model="toy",
        messages=CHAT,
        max_tokens=40,
        prediction={"type": "content", "content": text},
        extra_body={"foretoken": {"namespace": None, "budget": 7}},
    )
    assert answer.choices[0].message.content == text
    assert answer.usage.completion_tokens_details.accepted_prediction_tokens > 20
    assert answer.foretoken["acceptance_length"] > 2


def test_errors_are_the_clients_own(ai):
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-x'"):
        ai.chat.completions.create(model="gpt-x", messages=CHAT)
    with pytest.raises(openai.BadRequestError, match="temperature is -1") as refused:
        ai.chat.completions.create(model="toy", messages=CHAT, temperature=-1)
    assert refused.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="logit_bias is not supported here") as refused:
        ai.chat.completions.create(model="toy", messages=CHAT, logit_bias={"7": 5})
    assert (refused.value.param, refused.value.code) == ("logit_bias", "unsupported_parameter")
    with pytest.raises(openai.APITimeoutError):
        ai.chat.completions.create(model="toy", messages=CHAT, max_tokens=100_000, timeout=0.5)


def test_a_key_is_asked_for_and_taken(lm):
    with serving(lm, {"alice": "sk-alice-0123456789"}) as client:
        base = f"{client.base_url}/v1"
        with openai.OpenAI(base_url=base, api_key="sk-alice-0123456789", max_retries=0) as ai:
            assert ai.completions.create(model="toy", prompt="abc").choices[0].text
        with openai.OpenAI(base_url=base, api_key="sk-somebody-else-01", max_retries=0) as ai:
            with pytest.raises(openai.AuthenticationError):
                ai.completions.create(model="toy", prompt="abc")
            with pytest.raises(openai.AuthenticationError):
                ai.models.list()


def test_many_at_once_get_each_its_own_text(client, lm):
    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as ai:
            calls = [
                ai.completions.create(model="toy", prompt="abc", max_tokens=40, temperature=1.0, seed=seed)
                for seed in range(12)
            ]
            return [answer.choices[0].text for answer in await asyncio.gather(*calls)]

    texts = [lm.generate("abc", max_new_tokens=40, temperature=1.0, seed=seed).text for seed in range(12)]
    assert asyncio.run(all_at_once()) == texts and len(set(texts)) == 12
