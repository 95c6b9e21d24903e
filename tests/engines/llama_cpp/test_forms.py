"""Answers of GGUF files keep to a grammar or a schema, whatever drafts; one that does not parse is refused."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.util import find_spec

import pytest

from foretoken import FixedBudget, ForetokenError, LanguageModel
from foretoken.engines.llama_cpp.engine import LlamaCppEngine
from helpers.commanding import call
from helpers.gguf_files import gguf_file

pytestmark = [
    pytest.mark.llama_cpp,
    pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs llama-cpp-python"),
    pytest.mark.skipif(find_spec("llguidance") is None, reason="needs llguidance"),
]

DATES = """root ::= date ("," date)*
date ::= [0-9] [0-9] "-" [0-9] [0-9]
"""
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@cache
def lm() -> LanguageModel:
    return LanguageModel(LlamaCppEngine(gguf_file("q8_0"), context=400, threads=1, exact=True), background=None)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_keeps_to_its_form_whatever_drafts(temperature):
    how = {"max_new_tokens": 40, "temperature": temperature, "seed": 1, "namespace": None}
    for form in ({"grammar": DATES}, {"json_schema": SCHEMA}):
        plain = lm().generate("The answer is: ", drafter="none", **how, **form)
        for drafter, budget in (("mixed", None), ("ngram", FixedBudget(9)), ("prompt-lookup", None)):
            drafted = lm().generate("The answer is: ", drafter=drafter, budget=budget, **how, **form)
            assert (drafted.tokens, drafted.text) == (plain.tokens, plain.text)
        if "grammar" in form:
            assert re.fullmatch(r"(\d\d-\d\d,)*(\d\d-\d\d|\d?\d?-?\d?)", plain.text), plain.text
        elif plain.finish_reason == "stop":
            assert set(json.loads(plain.text)) == {"name", "age"}


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"grammar": "root ::= ("}, "The grammar cannot be followed"),
        ({"grammar": "root ::= missing"}, "The grammar cannot be followed"),
        ({"grammar": "  "}, "The grammar is empty"),
        ({"json_schema": {"type": "nothing"}}, "The JSON schema cannot be followed"),
        ({"json_schema": {"a": {1, 2}}}, "The JSON schema is no JSON"),
        ({"grammar": DATES, "json_schema": SCHEMA}, "a grammar or a JSON schema, not both"),
    ],
)
def test_a_form_that_does_not_parse_is_refused_before_the_first_token(form, sentence):
    with pytest.raises(ForetokenError, match=sentence):
        lm().stream("x", **form)


def test_the_command_line_reads_both_from_files(monkeypatch, capsys, tmp_path):
    (tmp_path / "dates.gbnf").write_text(DATES)
    (tmp_path / "broken.gbnf").write_text("root ::= (")
    (tmp_path / "list.json").write_text("[1]")
    words = ["generate", "--model", gguf_file("q8_0"), "--background", "none", "--max-new-tokens", 12, "--prompt", "x"]
    status, out, _ = call(monkeypatch, capsys, *words, "--temperature", 0, "--grammar", tmp_path / "dates.gbnf")
    assert status == 0 and re.match(r"\d\d-\d\d", out)
    for option, file, sentence in (
        ("--grammar", "broken.gbnf", "The grammar cannot be followed"),
        ("--json-schema", "list.json", "holds no JSON schema"),
        ("--grammar", "missing.gbnf", "could not be read"),
    ):
        status, out, said = call(monkeypatch, capsys, *words, option, tmp_path / file)
        assert status == 2 and sentence in said and not out
