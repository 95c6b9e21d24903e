"""How likely tokens were: as torch computes it from the model's own logits, whatever drafts, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install 'foretoken[serve]'")
pytest.importorskip("openai", reason="OpenAI's client is not installed: scripts/setup dev")

import openai
import torch

from foretoken import load
from foretoken.server.logprobs import of_chat
from helpers.serving import serving

CHAT = [{"role": "user", "content": "Say caf\N{LATIN SMALL LETTER E WITH ACUTE} twice."}]
SAMPLED = {"temperature": 1.3, "seed": 5, "frequency_penalty": 0.5, "max_tokens": 24}  # none of which the numbers know
PLAIN, DRAFTED = {"drafter": "none"}, {"drafter": "mixed", "budget": 7, "namespace": None}


@pytest.fixture(scope="module")
def tiny():
    return load("tiny", dtype="float32", background=None, exact=True)


@pytest.fixture(scope="module")
def client(tiny):
    with serving(tiny, name="tiny") as client:
        yield client


@pytest.fixture(scope="module")
def ai(client):
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as ai:
        yield ai


def ask(client: Any, **fields: Any) -> Any:
    path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
    answer = client.post(path, json={"model": "tiny"} | fields)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    return choice


def computed(tiny: Any, prompt: Any, text_tokens: list[int]) -> torch.Tensor:
    """The log-probabilities in each place of an answer, [tokens, vocab], in one forward of the model alone."""
    ids = torch.tensor([tiny.encode(prompt) + text_tokens])
    with torch.inference_mode():
        logits = tiny.model(ids).logits[0, -1 - len(text_tokens) : -1].double()
    return torch.log_softmax(logits, -1)


@pytest.mark.parametrize("drafting", [PLAIN, DRAFTED])
def test_a_chats_numbers_are_the_models_own(tiny, ai, drafting):
    answer = ai.chat.completions.create(
        model="tiny", messages=CHAT, logprobs=True, top_logprobs=5, extra_body={"foretoken": drafting}, **SAMPLED
    ).choices[0]
    result = tiny.generate(CHAT, temperature=1.3, seed=5, frequency_penalty=0.5, max_new_tokens=24, drafter="none")
    told = answer.logprobs.content
    tokens = list(result.tokens)[: len(told)]
    expected = computed(tiny, CHAT, tokens)
    assert len(told) == len(result.tokens) - (result.finish_reason == "stop")
    assert b"".join(bytes(one.bytes) for one in told).decode() == answer.message.content == result.text
    for one, token, logprobs in zip(told, tokens, expected, strict=True):
        assert one.logprob == pytest.approx(float(logprobs[token]), abs=1e-4)
        best, numbers = logprobs.topk(5)
        assert [other.logprob for other in one.top_logprobs] == pytest.approx(best.tolist(), abs=1e-4)
        assert one.top_logprobs[0].token == tiny.tokenizer.decode(numbers[:1])


def test_drafting_changes_no_bit_of_them(client):
    for how in ({"messages": CHAT, "logprobs": True, "top_logprobs": 20}, {"prompt": "def area(", "logprobs": 3}):
        plain, drafted = (ask(client, **how, **SAMPLED, foretoken=drafting) for drafting in (PLAIN, DRAFTED))
        assert plain == drafted and plain["logprobs"]


def test_a_completions_numbers_have_its_shape(tiny, client):
    choice = ask(client, prompt="def area(", logprobs=2, **SAMPLED)
    told, text = choice["logprobs"], choice["text"]
    assert told.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert "".join(told["tokens"]) == text
    starts = [len("".join(told["tokens"][:i])) for i in range(len(told["tokens"]))]
    assert told["text_offset"] == starts
    for token, logprob, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert top[token] == logprob and 2 <= len(top) <= 3 and sum(map(bool, top)) == len(top)
        assert max(top.values()) <= 0
    alone = ask(client, prompt="def area(", logprobs=0, **SAMPLED)["logprobs"]
    assert alone["token_logprobs"] == told["token_logprobs"] and all(len(top) == 1 for top in alone["top_logprobs"])
    assert ask(client, prompt="def area(", **SAMPLED)["logprobs"] is None


@pytest.mark.parametrize(
    "how", [{"messages": CHAT, "logprobs": True, "top_logprobs": 2}, {"prompt": "def", "logprobs": 2}]
)
@pytest.mark.parametrize("stops", [False, True])
def test_a_stream_tells_each_token_with_its_text(client, how, stops):
    fields = how | SAMPLED
    whole = ask(client, **fields)
    if stops:  # a string that begins and ends within tokens
        text = whole["message"]["content"] if "messages" in how else whole["text"]
        fields |= {"stop": text[13:17]}
        whole = ask(client, **fields)
    path = "/v1/chat/completions" if "messages" in how else "/v1/completions"
    with client.stream("POST", path, json={"model": "tiny", "stream": True} | fields) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    said = ""
    together: dict[str, list[Any]] = {}
    for choice in choices:
        said += choice["delta"].get("content", "") if "messages" in how else choice["text"]
        for field, value in (choice["logprobs"] or {}).items():
            together.setdefault(field, []).extend(value or [])
        told = together.get("content") or together.get("tokens") or []
        spelled = "".join(one if isinstance(one, str) else one["token"] for one in told)
        assert spelled.startswith(said), "a token is told no later than its text"
    expected = {field: value or [] for field, value in whole["logprobs"].items()}
    assert together == expected
    if stops:
        spelled = "".join(one if isinstance(one, str) else one["token"] for one in told)
        assert said == text[: text.index(fields["stop"])] and spelled.startswith(said)
        assert len(spelled) - len(said) < 12, "no token that is the stop string's alone"


def test_half_a_character_has_bytes_and_no_text(tiny):
    from foretoken.server.logprobs import AnswerLogprobs

    (token,) = tiny.tokenizer.convert_tokens_to_ids(["\N{LATIN CAPITAL LETTER A WITH TILDE}"])  # byte-level for C3
    assert tiny.engine.spelled(token) == b"\xc3" and tiny.engine.spelled(0) == b"<|endoftext|>"
    told = AnswerLogprobs(tiny.engine.spelled, 0)

    class Scores:
        def logprobs(self, row: int) -> list[float]:
            return [-float("inf")] * 4096

    from foretoken.core.contracts import Step
    from foretoken.core.draft import Draft

    scores: Any = Scores()
    assert told.settled(Step(Draft(), (token,), scores), [""], "") == []
    (one, _) = told.settled(Step(Draft(), (token,), scores), ["x"], "x")
    assert of_chat([one])["content"][0] == {"token": "\\xc3", "logprob": -9999.0, "bytes": [195], "top_logprobs": []}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (
            "chat/completions",
            {"messages": CHAT, "top_logprobs": 3},
            "top_logprobs cannot be used: it goes with logprobs",
        ),
        ("chat/completions", {"messages": CHAT, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("chat/completions", {"messages": CHAT, "logprobs": 3}, "logprobs"),
        ("completions", {"prompt": "a", "logprobs": -1}, "logprobs"),
        ("completions", {"prompt": "a", "logprobs": True}, "logprobs"),
    ],
)
def test_what_cannot_be_told_is_refused(client, path, fields, param):
    answer = client.post(f"/v1/{path}", json={"model": "tiny"} | fields)
    assert answer.status_code == 400 and param in answer.json()["error"]["message"]
