"""What an engine and its requests may say to our drafter within vLLM."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretoken.core.errors import RequestError
from foretoken.hosts.vllm.options import KEY, EngineOptions, RequestOptions
from foretoken.hosts.vllm.settings import MAX_DRAFT

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


def test_a_request_that_says_nothing_is_drafted_for_in_the_engines_namespace():
    for silent in (None, {}, {"other": {"draft": False}}, {KEY: {}}, {KEY: "{}"}):
        assert RequestOptions.read(silent, "default") == RequestOptions(True, None, "default")


@given(st.booleans(), st.none() | st.integers(1, MAX_DRAFT), st.none() | st.text(min_size=1, max_size=20))
def test_an_object_and_its_json_say_the_same(draft, limit, namespace):
    said = {"draft": draft, "limit": limit, "namespace": namespace}
    wanted = RequestOptions(draft, limit, namespace)
    assert RequestOptions.read({KEY: said}, "default") == RequestOptions.read({KEY: json.dumps(said)}) == wanted


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"draft": 0}, "draft"),
        ({"draft": "no"}, "draft"),
        ({"limit": 0}, "limit"),
        ({"limit": MAX_DRAFT + 1}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": 2.5}, "limit"),
        ({"namespace": ""}, "namespace"),
        ({"namespace": 7}, "namespace"),
        ({"namespace": "x" * 257}, "257"),
        ({"drafts": False}, "drafts"),
        ("{", "no JSON"),
        ("[1]", "object"),
        (["draft"], "object"),
        (1, "object"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_one_sentence(said, names):
    with pytest.raises(RequestError, match=names) as error:
        RequestOptions.read({KEY: said})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@given(ANY_JSON)
def test_whatever_a_client_sends_is_read_or_refused(said):
    for read in (RequestOptions.read, EngineOptions.read):
        for form in (said, json.dumps(said)):
            with contextlib.suppress(RequestError):
                read({KEY: form})


def test_an_engines_options_are_read_and_wrong_ones_refused():
    assert EngineOptions.read({}) == EngineOptions.read({KEY: {}}) == EngineOptions()
    assert EngineOptions.read({KEY: {"namespace": None, "history": True}}) == EngineOptions(
        history=True, namespace=None
    )
    for wrong in ({"speculator": 1}, {"history": 1}, {"background": ""}, {"namespace": []}, {"drafter": "ngram"}):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            EngineOptions.read({KEY: wrong})
