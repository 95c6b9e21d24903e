"""Functions that a model calls: OpenAI's own client, calls that follow their schemas, and what cannot be asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install 'foretoken[serve]'")
pytest.importorskip("llguidance", reason="grammars are not installed: pip install 'foretoken[serve]'")
pytest.importorskip("openai", reason="OpenAI's client is not installed: scripts/setup dev")

import openai
import pydantic
from hypothesis import given
from hypothesis import strategies as st

from foretoken import load
from foretoken.server.tools import BARE, TAGGED, CallReader, Form, Said, conversation, form_of
from helpers.serving import serving

SKY: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "sky",
        "description": "How the sky looks.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["town", "days"],
            "additionalProperties": False,
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
CHAT = [{"role": "user", "content": "How is the sky in Rome?"}]
# As Qwen's, in short: functions first, then turns, calls in tags.
TEMPLATE = """{% if tools %}<|user|>
Functions: {% for tool in tools %}{{ tool | tojson }}{% endfor %}
Write {"name": ..., "arguments": ...} in <tool_call></tool_call>.
{% endif %}{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}
{% endfor %}<|assistant|>
"""


@pytest.fixture(scope="module")
def bare():
    return load("tiny", dtype="float32", background=None, exact=False)


@pytest.fixture(scope="module")
def tagged():
    lm = load("tiny", dtype="float32", background=None, exact=False)
    lm.tokenizer.chat_template = TEMPLATE
    return lm


@contextmanager
def asking(lm: Any) -> Iterator[Any]:
    with (
        serving(lm, name="tiny") as client,
        openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as ai,
    ):
        yield ai


@pytest.fixture(scope="module")
def ai(tagged):
    with asking(tagged) as ai:
        yield ai


@pytest.fixture(scope="module")
def ai_of_bare(bare):
    with asking(bare) as ai:
        yield ai


def create(ai: Any, messages: Any = CHAT, **fields: Any) -> Any:
    fields = {"model": "tiny", "max_tokens": 120, "temperature": 0.9, "seed": 4, "tools": [SKY, NOW]} | fields
    return ai.chat.completions.create(messages=messages, **fields)


def check(call: Any) -> None:
    """A call follows its function's schema."""
    arguments = json.loads(call.function.arguments)
    if call.function.name == "now":
        assert arguments == {}
    else:
        assert call.function.name == "sky" and arguments.keys() == {"town", "days"}
        assert arguments["town"] in ("Rome", "Oslo") and 1 <= arguments["days"] <= 9


def calls_of(choice: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]


@pytest.mark.parametrize("form", ["ai", "ai_of_bare"])
def test_what_must_call_calls_and_is_the_same_whatever_drafts(request, form):
    ai = request.getfixturevalue(form)
    fields = {"tool_choice": "required", "parallel_tool_calls": False}
    plain = create(ai, **fields, extra_body={"foretoken": {"drafter": "none"}}).choices[0]
    (call,) = plain.message.tool_calls
    check(call)
    assert plain.finish_reason == "tool_calls" and plain.message.content is None and call.id.startswith("call_")
    for drafter in ("mixed", "anpd"):
        drafted = create(ai, **fields, extra_body={"foretoken": {"drafter": drafter, "budget": 7}})
        assert calls_of(drafted.choices[0]) == calls_of(plain)


def test_the_function_that_is_named_is_called_and_each_seed_calls_on_its_own(ai):
    named = {"type": "function", "function": {"name": "sky"}}
    choices = create(ai, tool_choice=named, n=3, parallel_tool_calls=False).choices
    for choice in choices:
        (call,) = choice.message.tool_calls
        check(call)
        assert call.function.name == "sky" and choice.finish_reason == "stop", "as OpenAI has it"
    assert len({choice.message.tool_calls[0].id for choice in choices}) == 3


def test_several_calls_may_come_if_they_may(ai):
    (choice,) = create(ai, tool_choice="required", seed=3).choices
    for call in choice.message.tool_calls[: -1 if choice.finish_reason == "length" else None]:
        check(call)
    counts = [
        len(create(ai, tool_choice="required", max_tokens=90, seed=seed).choices[0].message.tool_calls)
        for seed in range(3)
    ]
    assert max(counts) > 1


@pytest.mark.parametrize(("form", "choice"), [("ai", "required"), ("ai_of_bare", "required"), ("ai", "auto")])
def test_a_stream_makes_up_the_whole_answer(request, form, choice):
    ai = request.getfixturevalue(form)
    fields = {"tool_choice": choice, "extra_body": {"foretoken": {"budget": 7, "namespace": None}}, "max_tokens": 40}
    (whole,) = create(ai, **fields).choices
    content, calls, reasons = "", {}, []
    for chunk in create(ai, **fields, stream=True):
        (one,) = chunk.choices
        content += one.delta.content or ""
        reasons.append(one.finish_reason)
        for call in one.delta.tool_calls or ():
            if call.index not in calls:
                assert call.id and call.type == "function"
                calls[call.index] = [call.function.name, ""]
            calls[call.index][1] += call.function.arguments
    assert (content or None) == (whole.message.content or None)
    assert [tuple(calls[index]) for index in sorted(calls)] == (calls_of(whole) if whole.message.tool_calls else [])
    assert reasons[-1] == whole.finish_reason and not any(reasons[:-1])


@pytest.mark.parametrize(("form", "begins"), [("ai", '<tool_call>\n{"name": "'), ("ai_of_bare", '{"name": "')])
def test_logprobs_tell_calls_as_the_model_writes_them(request, form, begins):
    """Also the tokens that say nothing by themselves; a stream tells all that the whole answer does."""
    ai = request.getfixturevalue(form)
    fields = {"tool_choice": "required", "parallel_tool_calls": False, "logprobs": True, "top_logprobs": 1}
    fields |= {"extra_body": {"foretoken": {"drafter": "none"}}}  # in float32 here, in which drafting may round
    (whole,) = create(ai, **fields).choices
    told = whole.logprobs.content
    ((name, arguments),) = calls_of(whole)
    written = "".join(one.token for one in told)
    assert written.startswith(f'{begins}{name}", "arguments": {arguments}}}') and len(told[0].top_logprobs) == 1
    chunks = [chunk.choices[0] for chunk in create(ai, **fields, stream=True)]
    assert [one for chunk in chunks if chunk.logprobs for one in chunk.logprobs.content] == told
    assert [chunk.delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)


def test_the_clients_own_helper_for_streams_puts_a_call_together(ai):
    fields = {"model": "tiny", "messages": CHAT, "seed": 2, "temperature": 0.7, "tools": [SKY], "max_tokens": 100}
    with ai.chat.completions.stream(**fields, tool_choice="required", parallel_tool_calls=False) as stream:
        for _ in stream:
            pass
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    check(call)


def test_the_client_parses_arguments_into_a_class(ai):
    class Weather(pydantic.BaseModel):
        """The weather."""

        days: int = pydantic.Field(ge=1, le=7)

    answer = ai.chat.completions.parse(
        model="tiny",
        messages=CHAT,
        tools=[openai.pydantic_function_tool(Weather)],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=100,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)


def test_the_result_of_a_call_comes_back_with_the_conversation(ai):
    (choice,) = create(ai, tool_choice="required", parallel_tool_calls=False).choices
    (call,) = choice.message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "cloudy"}
    for message in (choice.message, choice.message.model_dump()):
        after = create(ai, [*CHAT, message, result], tool_choice="none", max_tokens=9).choices[0]
        assert after.message.content and after.message.tool_calls is None


def test_without_functions_or_when_none_may_be_called_the_prompt_knows_of_none(ai):
    texts = {
        create(ai, max_tokens=16, **fields).choices[0].message.content
        for fields in ({"tools": []}, {"tool_choice": "none"}, {"tools": [], "tool_choice": "auto"})
    }
    assert len(texts) == 1


@contextmanager
def saying(lm: Any, monkeypatch: Any, text: str) -> Iterator[Any]:
    """A client of a server whose model wants to say a text, then to end."""
    wanted = [*lm.engine.encode(text, add_special_tokens=False), 0]
    prepare = type(lm.engine).prepare

    def prepared(self: Any, prompt: Any, sampling: Any, *rest: Any) -> Any:
        def say(ids: Any, scores: Any) -> Any:
            place = ids.shape[1] - len(prompt)
            scores[0, wanted[min(place, len(wanted) - 1)]] += 1000
            return scores

        sampling = sampling.__class__(processors=(say, *sampling.processors), temperature=0)
        return prepare(self, prompt, sampling, *rest)

    with (
        monkeypatch.context() as patched,
        asking(lm) as ai,
    ):
        patched.setattr(type(lm.engine), "prepare", prepared)
        yield ai


@pytest.mark.parametrize("before", ["", "Let me look: 2 < 3 and <tool_> "])
def test_a_model_that_may_call_calls_where_it_wants_to(tagged, monkeypatch, before):
    call = TAGGED.written("sky", {"town": "Rome", "days": 2})
    other = TAGGED.written("now", {})
    with saying(tagged, monkeypatch, f"{before}{call}\n{other}") as ai:
        (choice,) = create(ai).choices
        assert calls_of(choice) == [("sky", '{"town": "Rome", "days": 2}'), ("now", "{}")]
        assert choice.message.content == (before or None) and choice.finish_reason == "tool_calls"
        (alone,) = create(ai, parallel_tool_calls=False).choices
        assert calls_of(alone) == [("sky", '{"town": "Rome", "days": 2}')]


@pytest.mark.parametrize("form", ["bare", "tagged"])
def test_what_is_no_call_is_text(request, monkeypatch, form):
    lm = request.getfixturevalue(form)
    for text in ('{"nam": 1}', "a <tool_call", 'x {"name": "sky"'):
        with saying(lm, monkeypatch, text) as ai:
            (choice,) = create(ai).choices
            assert choice.message.content == text and not choice.message.tool_calls and choice.finish_reason == "stop"


def test_a_function_that_there_is_not_cannot_be_called(tagged, monkeypatch):
    with saying(tagged, monkeypatch, '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>') as ai:
        (choice,) = create(ai).choices
        assert {name for name, _ in calls_of(choice)} <= {"sky", "now"}


def test_the_model_is_told_of_the_functions(bare, tagged):
    from foretoken.server.schema import ChatAsked, read_asked

    calls = [{"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}}]
    messages = [*CHAT, {"role": "assistant", "content": None, "tool_calls": calls}]
    messages += [{"role": "tool", "tool_call_id": "a", "content": "noon"}]
    asked = read_asked(ChatAsked, {"model": "tiny", "messages": messages, "tools": [SKY, NOW]})
    assert (form_of(bare), form_of(tagged)) == (BARE, TAGGED)
    texts = []
    for lm in (bare, tagged):
        turns, functions = conversation(asked, form_of(lm))
        texts.append(lm.tokenizer.decode(lm.encode(turns, functions)))
    for text in texts:
        assert "How the sky looks." in text and "noon" in text and '{"name": "now", "arguments": {}}' in text
    assert "The result of now:\nnoon" in texts[0] and "<|tool|>\nnoon" in texts[1]


def taking(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


FAULTS: list[tuple[dict[str, Any], str | None]] = [
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
    ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools.0.function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools.0.function.parameters"),
    ({"tools": [NOW, NOW]}, "tools"),
    ({"tools": [NOW] * 129}, "tools"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "moon"}}}, "tool_choice"),
    ({"tool_choice": "sometimes"}, None),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tools": [taking({"type": "array"})]}, "tools.0.function.parameters"),
    ({"tools": [taking({"properties": {"a": {"type": "strange"}}})]}, None),
    ({"tools": [taking({"properties": {"a": {"enum": ["y" * 20_000]}}})]}, None),
    ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]}, "messages.0.tool_call_id"),
    ({"messages": [{"role": "user", "content": "y", "tool_call_id": "x"}]}, "messages.0.tool_call_id"),
    ({"functions": [{"name": "f"}]}, "functions"),
]


@pytest.mark.parametrize(("fault", "param"), FAULTS)
def test_what_cannot_be_asked_is_refused(ai, fault, param):
    with pytest.raises(openai.BadRequestError) as refused:
        create(
            ai,
            **({"messages": CHAT} | {name: value for name, value in fault.items() if name == "messages"}),
            **{name: value for name, value in fault.items() if name not in ("messages", "functions")},
            extra_body={name: value for name, value in fault.items() if name == "functions"},
        )
    if param:
        assert refused.value.param == param


def test_an_engine_without_grammars_refuses(lm):
    with serving(lm) as client:
        body = {"model": "toy", "messages": CHAT, "tools": [NOW]}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400 and "follows no grammar" in answer.json()["error"]["message"]


JSON = st.recursive(st.none() | st.integers() | st.text(max_size=6), lambda inner: st.lists(inner, max_size=3))


@given(
    form=st.sampled_from([BARE, TAGGED]),
    before=st.text(max_size=12),
    calls=st.lists(st.tuples(st.sampled_from(["f", "g-2"]), st.dictionaries(st.text(max_size=5), JSON, max_size=3))),
    cuts=st.lists(st.integers(0, 200)),
)
def test_calls_are_read_however_the_text_is_cut(form: Form, before, calls, cuts):
    if (form is BARE and calls) or TAGGED.mark in before or before.startswith(BARE.mark):
        before = ""
    text = before + "\n".join(form.written(name, arguments) for name, arguments in calls)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    reader, said = CallReader(form), list[Said]()
    for start, end in pairwise(places):
        said += reader.push(text[start:end])
    said += reader.flush()
    assert "".join(one.text for one in said if one.call is None) == before
    assert [one.name for one in said if one.name] == [name for name, _ in calls]
    for i, (_, arguments) in enumerate(calls):
        assert json.loads("".join(one.text for one in said if one.call == i)) == arguments
    assert reader.is_between_calls and reader.num_calls == len(calls)
