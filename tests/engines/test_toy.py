"""The toy engine, which stands for every other: text in and text out by the engine protocol alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import foretoken
from foretoken import FixedBudget, LanguageModel, RequestError
from foretoken.drafters import DRAFTERS
from foretoken.engines.toy import CHARACTERS, ToyEngine
from helpers.commanding import call

PROMPT = "a b a b, a b\n"
OF_TOKENS = [name for name in DRAFTERS if name not in ("draft-model", "early-exit")]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(ToyEngine(max_length=400), background=None)


@pytest.mark.parametrize("drafter", OF_TOKENS)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "seed": 4}, {"temperature": 1.5, "seed": 2**70}])
def test_text_is_the_same_with_and_without_drafting(lm, drafter, options):
    plain = lm.generate(PROMPT, max_new_tokens=120, drafter="none", **options)
    drafted = lm.generate(PROMPT, max_new_tokens=120, drafter=drafter, budget=FixedBudget(6), **options)
    assert (drafted.text, drafted.tokens, drafted.finish_reason) == (plain.text, plain.tokens, "length")
    assert plain.text == "".join(CHARACTERS[token] for token in plain.tokens) and plain.stats.steps == 119
    assert plain.num_prompt_tokens == drafted.num_prompt_tokens == len(PROMPT)
    if not options:
        assert drafted.stats.accepted > 0, "the greedy text repeats itself, so that there is something to guess"


def test_a_text_ends_at_a_stop_string_and_at_the_end_of_the_context(lm):
    whole = lm.generate(PROMPT, max_new_tokens=60)
    stop = whole.text[20:24]
    stopped = lm.generate(PROMPT, max_new_tokens=60, stop=["no such text", stop])
    assert stopped.text == whole.text[: whole.text.index(stop) + 4] and stopped.finish_reason == "stop"
    full = lm.generate("a" * 390)
    assert len(full.tokens) == 10 and full.finish_reason == "length"


def test_a_conversation_goes_through_the_engine(lm):
    said = lm.generate([{"role": "user", "content": "hi"}], max_new_tokens=9)
    assert said.text == lm.generate("user: hi\nassistant: ", max_new_tokens=9).text


def test_processors_are_called_and_other_settings_refused(lm):
    asked = []

    def only_z(tokens, logits):
        asked.append(len(tokens))
        return [0.0 if CHARACTERS[token] == "z" else -9e9 for token in range(len(logits))]

    assert lm.generate(PROMPT, processors=[only_z], max_new_tokens=5, drafter="anpd").text == "zzzzz"
    assert asked == [len(PROMPT) + i for i in range(5)], "once for each token, in order"
    for options in ({"top_k": 5}, {"presence_penalty": 1.0}, {"top_p": 0.5, "temperature": 1.0}):
        with pytest.raises(RequestError, match="The toy engine does not choose tokens by"):
            lm.generate(PROMPT, **options)
    with pytest.raises(RequestError, match="generation_config is no option of the toy engine"):
        lm.generate(PROMPT, generation_config=object())
    with pytest.raises(RequestError, match="does not know 'é'"):
        lm.generate("café")


@pytest.mark.parametrize("drafter", ["draft-model:model=tiny", "early-exit"])
def test_drafters_that_run_a_model_are_refused_with_a_sentence(lm, drafter):
    with pytest.raises(RequestError, match="this engine"):
        lm.generate(PROMPT, drafter=drafter)


def test_a_seed_is_drawn_where_none_is_given(lm):
    texts = {lm.generate(PROMPT, temperature=1.0, max_new_tokens=30, drafter="none").text for _ in range(3)}
    assert len(texts) == 3


def test_several_prompts_are_answered_quietly(lm, capfd):
    results = lm.generate([PROMPT, "ab"], max_new_tokens=5)
    assert [result.text for result in results] == [lm.generate(p, max_new_tokens=5).text for p in (PROMPT, "ab")]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("where", [{"dtype": "float32"}, {"device": "cpu"}])
def test_a_dtype_and_a_device_are_refused(where):
    with pytest.raises(foretoken.ForetokenError, match="leave them out"):
        foretoken.load("toy", **where)


def test_the_command_line_takes_it(monkeypatch, capsys):
    ask = ("--model", "toy", "--prompt", PROMPT, "--max-new-tokens", 30, "--background", "none")
    status, out, err = call(monkeypatch, capsys, "generate", *ask, "--no-history", "--json")
    plain = foretoken.load("toy", background=None, history=False).generate(PROMPT, max_new_tokens=30, drafter="none")
    assert (status, json.loads(out)["text"]) == (0, plain.text), err
    status, out, err = call(monkeypatch, capsys, "compare", *ask, "--rounds", 1, "--json")
    assert (status, json.loads(out)[0]["identical"]) == (0, True), err
    status, out, err = call(monkeypatch, capsys, "check", "toy", "--dtype", "auto")
    assert status == 2 and "The toy engine shows no logits to check" in err


WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "tokenizers", "tqdm", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import foretoken

lm = foretoken.load("toy", history=False, background=None)
plain = lm.generate("a b a b", max_new_tokens=40, drafter="none")
for name in %r:
    assert lm.generate("a b a b", max_new_tokens=40, drafter=name).text == plain.text, name
streamed = lm.stream("a b a b", max_new_tokens=40)
assert "".join(chunk.text for chunk in streamed) == plain.text
from foretoken.cli import run
sys.argv = ["foretoken", "generate", "--model", "toy", "--prompt", "a b a b", "--max-new-tokens", "40", "--no-history"]
assert run() == 0
try:
    foretoken.load("tiny")
except foretoken.ForetokenError as error:
    print(error)
"""


def test_nothing_of_torch_or_transformers_is_needed():
    code = WITHOUT % (OF_TOKENS,)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "This model needs " in run.stdout and "pip install 'foretoken[transformers]'" in run.stdout
