"""Errors say whose they are, so that a server can tell 400 from 500."""

from __future__ import annotations

import pytest

import foretoken
from foretoken import ForetokenError, LanguageModel, ModelError, RequestError
from foretoken.core.errors import LogitsError
from foretoken.engines.toy import ToyEngine


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("", {}),
        ("a" * 50, {}),
        ("caf\u00e9", {}),
        ("a\udc80", {}),
        ("a", {"max_new_tokens": 0}),
        ("a", {"temperature": -1}),
        ("a", {"stop": ""}),
        ("a", {"drafter": "magic"}),
        ("a", {"drafter": "anpd:order=5"}),
        ("a", {"references": "one"}),
        ("a", {"references": [7]}),
        ("a", {"namespace": ""}),
        ("a", {"top_k": 3}),
        ("a", {"generation_config": 3}),
    ],
)
def test_what_a_caller_asks_for_is_the_requests_error(prompt, options):
    lm = LanguageModel(ToyEngine(max_length=40), background=None)
    with pytest.raises(RequestError):
        lm.generate(prompt, **options)


@pytest.mark.parametrize("name", ["no/such/folder", ".", 7])
def test_a_model_that_cannot_be_had_is_the_models_error(name):
    with pytest.raises(ModelError):
        foretoken.load(name)


def test_all_are_one_kind():
    assert issubclass(LogitsError, ModelError)
    for kind in (RequestError, ModelError):
        assert issubclass(kind, ForetokenError) and issubclass(kind, ValueError)
