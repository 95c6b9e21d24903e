"""Answers that are JSON, whatever drafts."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install 'foretoken[serve]'")
pytest.importorskip("llguidance", reason="grammars are not installed: pip install 'foretoken[serve]'")
pytest.importorskip("openai", reason="OpenAI's client is not installed: scripts/setup dev")

import numpy as np
import openai
import pydantic
import torch
from llguidance import LLMatcher

from foretoken import load
from foretoken.api.grammar import MAX_SCHEMA, GrammarProcessor
from helpers.serving import serving

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee", "milk"]}, "minItems": 2, "maxItems": 4},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
CHAT = [{"role": "user", "content": "Describe a person as JSON."}]


@pytest.fixture(scope="module")
def tiny():
    return load("tiny", dtype="float32", background=None)


@pytest.fixture(scope="module")
def client(tiny):
    with serving(tiny, name="tiny") as client:
        yield client


def ask(client: Any, status: int = 200, **fields: Any) -> Any:
    answer = client.post("/v1/chat/completions", json={"model": "tiny", "messages": CHAT, "max_tokens": 120} | fields)
    assert answer.status_code == status, answer.text
    return answer.json()


def check(text: str) -> None:
    """A text follows the schema."""
    person = json.loads(text)
    assert list(person) == ["name", "age", "likes"] and len(person["name"]) <= 12
    assert type(person["age"]) is int and 0 <= person["age"] <= 150
    assert 2 <= len(person["likes"]) <= 4 and set(person["likes"]) <= {"tea", "coffee", "milk"}


@pytest.mark.parametrize("how", [{"temperature": 0}, {"temperature": 1.5, "seed": 3, "top_p": 0.95}])
def test_an_answer_follows_its_schema_and_is_the_same_whatever_drafts(client, how):
    plain = ask(client, response_format=FORM, foretoken={"drafter": "none"}, **how)
    (choice,) = plain["choices"]
    assert choice["finish_reason"] == "stop"
    check(choice["message"]["content"])
    accepted = 0
    for drafter in ("mixed", "anpd", "lookahead", "speculator"):
        drafted = ask(client, response_format=FORM, foretoken={"drafter": drafter, "budget": 7}, **how)
        assert drafted["choices"] == plain["choices"]
        accepted += drafted["foretoken"]["accepted"]
    assert accepted > 0


def test_a_prediction_of_the_answer_is_accepted_under_a_grammar(client):
    (choice,) = ask(client, response_format=FORM, temperature=0)["choices"]
    prediction = {"type": "content", "content": choice["message"]["content"]}
    drafting = {"namespace": None, "budget": 7}
    again = ask(client, response_format=FORM, temperature=0, prediction=prediction, foretoken=drafting)
    assert again["choices"] == [choice] and again["foretoken"]["acceptance_length"] > 2


def test_several_answers_follow_it_each(client):
    for choice in ask(client, response_format=FORM, n=3, temperature=1.2, seed=8, max_tokens=500)["choices"]:
        check(choice["message"]["content"])


def test_any_json_object_will_do_if_there_is_no_schema(client):
    def text(**form: Any) -> str:
        return ask(client, temperature=0.9, seed=1, **form)["choices"][0]["message"]["content"]

    assert text(response_format={"type": "json_object"}).lstrip().startswith("{")
    assert not text().lstrip().startswith("{"), "the control"
    assert text(response_format={"type": "text"}) == text()


def test_openais_client_parses_an_answer_into_a_class(client):
    class Weather(pydantic.BaseModel):
        sky: Literal["clear", "cloudy"]
        degrees: int = pydantic.Field(ge=-50, le=50)

    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as ai:
        answer = ai.chat.completions.parse(model="tiny", messages=CHAT, max_tokens=100, response_format=Weather)
    assert isinstance(answer.choices[0].message.parsed, Weather)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"type": "yaml"}, "response_format.type"),
        ({"type": "json_schema"}, "goes with the type json_schema"),
        ({"type": "json_object", "json_schema": FORM["json_schema"]}, "goes with the type json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "schema is missing"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": []}}, "cannot be used"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}, "Invalid type: strange"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"pattern": "(", "type": "string"}}}, "regex"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://a/b"}}}, "cannot be followed"),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["y" * MAX_SCHEMA]}}},
            f"{MAX_SCHEMA} at most",
        ),
    ],
)
def test_a_form_that_cannot_be_followed_is_refused(client, form, said):
    assert said in ask(client, 400, response_format=form)["error"]["message"]


def test_a_grammar_that_never_ends_ends_with_the_tokens(client):
    endless = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": endless}}
    answer = ask(client, response_format=form, max_tokens=60)
    assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 60


def test_an_engine_without_such_a_tokenizer_refuses(lm):
    with serving(lm) as client:
        body = {"model": "toy", "prompt": "abc", "response_format": {"type": "json_object"}}
        assert "follows no grammar" in client.post("/v1/completions", json=body).json()["error"]["message"]


def test_rows_may_be_asked_for_in_any_order(tiny):
    """What a processor says of a path does not depend on the paths that it was asked about before."""
    prompt = tiny.encode("x")
    texts = [
        '{"name": "Al", "age"',
        '{"name": "Bo"',
        '{"name"',
        "",
        '{"name": "Al", "age": 4',
        "no JSON",
        '{"nam',
        '{ "',
    ]
    make = tiny.grammars.of_schema(SCHEMA)
    scores = torch.zeros(1, tiny.engine.vocab_size)

    def masked(processor: GrammarProcessor, text: str) -> list[bool]:
        ids = torch.tensor([[*prompt, *tiny.engine.encode(text, add_special_tokens=False)]])
        return torch.isinf(processor(ids, scores))[0].tolist()

    def fresh() -> GrammarProcessor:
        processor = make()
        assert isinstance(processor, GrammarProcessor)
        masked(processor, "")
        return processor

    used = fresh()
    for text in texts:
        alone = masked(fresh(), text)
        assert masked(used, text) == alone
        assert any(alone) != (text == "no JSON") and not all(alone)


def test_the_mask_is_that_of_the_grammar(tiny):
    make = tiny.grammars.of_schema({"enum": ["yes", "no"]})
    processor = make()
    scores = processor(torch.tensor([tiny.encode("x")]), torch.zeros(1, tiny.engine.vocab_size))
    allowed = [tiny.tokenizer.decode([token]) for token in np.flatnonzero(torch.isfinite(scores[0]).numpy())]
    assert allowed and all('"yes"'.startswith(text) or '"no"'.startswith(text) for text in allowed)
    assert isinstance(processor._matcher, LLMatcher)
