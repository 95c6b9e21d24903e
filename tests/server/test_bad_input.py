"""Whatever a client sends, it gets one sentence in OpenAI's shape, and the others their answers."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install 'foretoken[serve]'")
pytest.importorskip("httpx2", reason="the client of these tests is not installed: scripts/setup dev")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foretoken.server import body as bodies
from foretoken.server.errors import ApiError
from foretoken.server.schema import NOT_DONE, ChatAsked, read_asked
from helpers.serving import serving

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
TEXT = {"model": "toy", "prompt": "hi", "max_tokens": 4}


def refused(
    client: Any, path: str, content: bytes, status: int = 400, kind: str = "application/json"
) -> dict[str, Any]:
    """The error of a request that gets this status, within a second."""
    started = time.process_time()  # the server runs in this process, and other programs do not count
    answer = client.post(path, content=content, headers={"content-type": kind})
    assert time.process_time() - started < 5, "a second, on a quick machine"
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["message"][-1] == "." and "Traceback" not in answer.text and len(answer.text) < 1500
    return error


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"7", b'"text"', b"{'model': 'toy'}", b"\xff\xfe", b"\x00", b"{}" * 2, b"[" * 200_000],
)
def test_a_body_that_is_no_json_object_is_refused(client, content):
    refused(client, "/v1/completions", content)


def test_a_body_that_is_not_said_to_be_json_is_refused(client):
    """As a page of another origin would send it, without asking first."""
    refused(client, "/v1/completions", json.dumps(TEXT).encode(), 415, "text/plain")


def test_a_page_whose_host_was_turned_to_this_machine_is_refused(lm):
    with serving(lm, hosts={"localhost", "127.0.0.1"}) as client:
        for host, status in (("evil.example:8000", 403), ("localhost:1", 200), ("127.0.0.1", 200)):
            answer = client.post("/v1/completions", json=TEXT, headers={"Host": host})
            assert answer.status_code == status, host


def test_a_body_that_is_nested_deep_or_too_large_is_refused(client):
    deep = json.dumps(TEXT | {"user": "X"}).replace('"X"', "[" * 100 + "]" * 100).encode()
    assert "nested" in refused(client, "/v1/completions", deep)["message"]
    large = json.dumps(TEXT | {"prompt": "a" * bodies.MAX_BYTES}).encode()
    assert refused(client, "/v1/completions", large, 413)["code"] == "body_too_large"

    def endless():
        for _ in range(bodies.MAX_BYTES // 2**16 + 1):
            yield b"a" * 2**16

    answer = client.post("/v1/completions", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 5000])
def test_a_number_that_is_none_is_refused(client, number):
    content = json.dumps(TEXT | {"temperature": "X"}).replace('"X"', number).encode()
    refused(client, "/v1/completions", content)


@pytest.mark.parametrize("fields", [{"user": "\ud800"}, {"\udc00": 1}, {"prompt": "a\ud83d"}])
def test_half_a_character_is_refused_and_a_whole_one_is_read(client, fields):
    refused(client, "/v1/completions", json.dumps(TEXT | fields).encode())
    assert bodies.parse(json.dumps({"a": "\N{GRINNING FACE}"}).encode()) == {"a": "\N{GRINNING FACE}"}


FAULTS = [
    ({"model": None}, "model"),
    ({"model": 7}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
    ({"messages": [{"role": "judge", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages.0.tool_calls.0.id"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]}, None),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, None),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 4.0}, "max_tokens"),
    ({"max_tokens": "4"}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"temperature": -0.1}, None),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"seed": 1.5}, "seed"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream_options": {"more": True}}, "stream_options.more"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stop": ["x"] * 10_000}, "stop"),
    ({"stop": [""]}, "stop.0"),
    ({"stop": 7}, "stop"),
    ({"stop": ["x" * 10_000]}, "stop.0"),
    ({"prediction": "text"}, "prediction"),
    ({"prediction": {"type": "image", "content": "x"}}, "prediction.type"),
    ({"foretoken": 7}, "foretoken"),
    ({"foretoken": {"drafter": "magic"}}, None),
    ({"foretoken": {"drafter": "draft-model:model=/etc"}}, None),
    ({"foretoken": {"drafter": "draft-model"}}, None),
    ({"foretoken": {"drafter": "lookahead:window=100000"}}, None),
    ({"foretoken": {"budget": -1}}, "foretoken.budget"),
    ({"foretoken": {"budget": 10**9}}, "foretoken.budget"),
    ({"foretoken": {"namespace": ""}}, "foretoken.namespace"),
    ({"foretoken": {"references": "text"}}, "foretoken.references"),
    ({"foretoken": {"references": [7]}}, "foretoken.references.0"),
    ({"foretoken": {"drafter": "anpd", "references": ["x"]}}, None),
    ({"foretoken": {"exact": "maybe"}}, "foretoken.exact"),
    ({"foretoken": {"exact": 1}}, "foretoken.exact"),
    ({"unheard_of": 1}, "unheard_of"),
    ({"top_p": 0.5}, None),  # which the toy engine does not choose by
]


@pytest.mark.parametrize(("fault", "param"), FAULTS)
def test_a_field_that_cannot_be_honoured_is_named(client, fault, param):
    error = refused(client, "/v1/chat/completions", json.dumps(CHAT | fault).encode())
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize("name", sorted(NOT_DONE))
def test_what_is_not_done_is_refused_and_what_asks_for_nothing_is_taken(client, name):
    error = refused(client, "/v1/chat/completions", json.dumps(CHAT | {name: "something"}).encode())
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    for neutral in NOT_DONE[name]:
        read_asked(ChatAsked, CHAT | {name: neutral})
    with pytest.raises(ApiError):
        read_asked(ChatAsked, CHAT | {"echo": 0})  # no boolean


@pytest.mark.parametrize("prompt", [None, 7, "", [], [""], [7], [[7, 8]], ["a", 7], {"a": 1}, ["a"] * 1000])
def test_a_prompt_of_something_else_is_refused(client, prompt):
    error = refused(client, "/v1/completions", json.dumps(TEXT | {"prompt": prompt}).encode())
    assert error["param"].startswith("prompt")


def test_one_bad_prompt_of_several_is_found_before_the_first_is_answered(client):
    assert "'é'" in refused(client, "/v1/completions", json.dumps(TEXT | {"prompt": ["ok", "é"]}).encode())["message"]


def test_a_prompt_beyond_the_context_is_told_so(lm):
    from foretoken import LanguageModel
    from foretoken.engines.toy import ToyEngine

    with serving(LanguageModel(ToyEngine(max_length=32), background=None)) as client:
        error = refused(client, "/v1/completions", json.dumps(TEXT | {"prompt": "a" * 32}).encode())
        assert error["code"] == "context_length_exceeded"
        answer = client.post("/v1/completions", json=TEXT | {"prompt": "a" * 30, "max_tokens": 99}).json()
        assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 2


def test_there_is_nothing_elsewhere(client):
    for method, path, status in (("GET", "/v1", 404), ("POST", "/v1/embeddings", 404), ("GET", "/v1/completions", 405)):
        answer = client.request(method, path)
        assert answer.status_code == status and answer.json()["error"]["message"]
    assert client.request("GET", "/v1/completions").headers["allow"] == "POST"


@pytest.mark.parametrize(
    "content",
    [b"GET /\r\n\r\n", b"\x16\x03\x01\x02\x00", b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n"],
)
def test_what_is_no_http_is_refused_and_the_server_goes_on(client, content):
    with socket.create_connection((client.base_url.host, client.base_url.port), 10) as raw:
        raw.sendall(content)
        said = b"".join(iter(lambda: raw.recv(1000), b""))
        assert said.startswith(b"HTTP/1.1 400") and b'{"error": {"message": "This is no HTTP/1.1' in said
    assert client.get("/health").status_code == 200


def test_a_body_that_does_not_come_is_given_up(lm, monkeypatch):
    monkeypatch.setattr(bodies, "SECONDS", 0.2)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    with serving(lm) as client, socket.create_connection((client.base_url.host, client.base_url.port), 10) as raw:
        raw.sendall(head)
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


def test_a_fault_of_ours_tells_nobody_what_was_asked(lm, monkeypatch, caplog):
    def broken(*_: object, **__: object) -> list[int]:
        raise ZeroDivisionError("secret prompt")

    with serving(lm) as client:
        monkeypatch.setattr(lm.engine, "encode", broken)
        error = refused(client, "/v1/completions", json.dumps(TEXT).encode(), 500)
        monkeypatch.undo()
        assert error["code"] == "internal_error" and client.post("/v1/completions", json=TEXT).status_code == 200
    assert "ZeroDivisionError" in caplog.text and "secret" not in caplog.text + error["message"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*ChatAsked.model_fields, *NOT_DONE]) | st.text(max_size=8), VALUES))
def test_any_object_is_read_or_refused_with_a_sentence(fields):
    try:
        read_asked(ChatAsked, CHAT | fields)
    except ApiError as error:
        assert error.status == 400 and error.message[-1] == "." and len(error.message) < 700
