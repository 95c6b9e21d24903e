"""Our worker in engines of vLLM: options of requests, memories of namespaces, ends, and trained heads."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

import torch
from torch import nn
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from foretoken.core.errors import RequestError
from foretoken.hosts.vllm import plugin
from foretoken.hosts.vllm.options import KEY
from foretoken.memory.history import History
from foretoken.speculators.formats import save_speculator
from foretoken.speculators.medusa import MedusaConfig, MedusaHeads
from helpers.vllm_engine import TINY, engine, worker_of
from helpers.vllm_rows import AsksHeads, DraftsAll

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # vLLM and torch give many

OURS = {"method": "custom_class", "model": plugin.DRAFTER, "num_speculative_tokens": 6}
PROMPTS = [
    "def area(width, height):\n    return width * height\n\ndef volume(width, height, depth):\n    return",
    "Once upon a time there was a little girl who",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,",
    "x = 3\nprint(x * 2)\nx = 3\nprint(x * 2)\nx = 3\n",
    "What is the capital of France?",
]
NEW = PROMPTS[1:2], 8  # before its answer repeats itself


class Watched:
    """An engine with our worker, which counts what is drafted and accepted."""

    def __init__(self, **options: Any) -> None:
        self.llm = engine(OURS, additional_config={KEY: options})
        self.drafter = worker_of(self.llm).model_runner.drafter
        self.drafter.budget, self.drafter._arms = DraftsAll(least=0.02), AsksHeads()
        self.longest = self.drafted = self.accepted = self.steps = 0
        propose = self.drafter.propose

        def counting(sampled: list[list[int]], *rest: Any, **named: Any) -> list[list[int]]:
            drafts: list[list[int]] = propose(sampled, *rest, **named)
            self.longest = max(self.longest, *map(len, drafts))
            self.steps += 1
            self.drafted += sum(map(len, drafts))
            self.accepted += sum(max(0, len(new) - 1) for new in sampled)
            return drafts

        self.drafter.propose = counting

    def answers(self, prompts: list[str], num: int = 40, **options: Any) -> list[list[int]]:
        self.longest = self.drafted = self.accepted = self.steps = 0
        return answers(self.llm, prompts, num, **options)


def params(num: int = 40, **options: Any) -> SamplingParams:
    return SamplingParams(
        temperature=0, max_tokens=num, ignore_eos=True, extra_args={KEY: options} if options else None
    )


def answers(llm: Any, prompts: list[str], num: int = 40, **options: Any) -> list[list[int]]:
    return [list(one.outputs[0].token_ids) for one in llm.generate(prompts, params(num, **options), use_tqdm=False)]


@pytest.fixture(scope="module")
def plain():
    return engine()


@pytest.fixture(scope="module")
def expected(plain):
    return answers(plain, PROMPTS)


@pytest.fixture(scope="module", autouse=True)
def plugin_in_place():
    plugin.register()


@pytest.fixture(scope="module")
def watched(plain):
    return Watched()


def test_the_plugin_puts_our_worker_in_and_text_stays(watched, expected):
    assert type(worker_of(watched.llm)).__module__ == "foretoken.hosts.vllm.worker"
    assert watched.answers(PROMPTS) == expected
    assert watched.accepted > 0


def test_an_engine_that_does_not_ask_has_vllms_own_worker(plain):
    assert type(worker_of(plain)).__module__.startswith("vllm.")


def test_requests_have_options_of_their_own(watched, expected):
    assert watched.answers(PROMPTS, draft=False) == expected
    assert watched.drafted == 0
    assert watched.answers(PROMPTS, limit=1) == expected
    assert watched.longest == 1
    mixed = [params(), params(draft=False), params(limit=2), params(namespace="apart"), params(namespace=None)]
    asked = watched.llm.generate(PROMPTS, mixed, use_tqdm=False)
    assert [list(one.outputs[0].token_ids) for one in asked] == expected


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"draft": "no"}, {"namespace": ""}, {"budget": 1}])
def test_wrong_options_are_refused_and_others_are_answered(watched, plain, expected, wrong):
    with pytest.raises(VLLMValidationError, match=next(iter(wrong))):
        answers(watched.llm, PROMPTS, **wrong)
    with pytest.raises(VLLMValidationError, match="leave them out"):
        answers(plain, PROMPTS, limit=1)
    assert watched.answers(PROMPTS[:1], namespace="other") == expected[:1]


def test_options_come_as_json_from_http(watched):
    how = params()
    how.extra_args = {KEY: json.dumps({"limit": 2})}
    watched.longest = 0
    watched.llm.generate(PROMPTS, how, use_tqdm=False)
    assert watched.longest == 2


def test_a_namespace_remembers_and_another_does_not_know(watched):
    first = watched.answers(*NEW, namespace="story"), watched.steps
    again = watched.answers(*NEW, namespace="story"), watched.steps
    elsewhere = watched.answers(*NEW, namespace="nobody's"), watched.steps
    alone = watched.answers(*NEW, namespace=None), watched.steps
    assert first[0] == again[0] == elsewhere[0] == alone[0]
    assert again[1] < first[1]
    assert elsewhere[1] == alone[1] == first[1]


def test_ends_and_aborts_leave_nothing(watched):
    core = watched.llm.llm_engine
    for name in ("a", "b", "c"):
        core.add_request(name, PROMPTS[0], params(400))
    for _ in range(4):
        core.step()
    assert len(watched.drafter.states) == len(watched.drafter.requests) == 3
    core.abort_request(["a", "c"])
    core.step()
    assert len(watched.drafter.states) == len(watched.drafter.requests) == 1
    core.abort_request(["b"])
    watched.answers(PROMPTS[:1])
    assert len(watched.drafter.states) <= 1
    assert len(watched.drafter.requests) <= 1


def test_a_history_outlives_the_engine(plain, tmp_path):
    file = tmp_path / "history.sqlite"
    earlier = Watched(history=str(file))
    first = earlier.answers(*NEW), earlier.steps
    earlier.answers(["Hello"], 2)  # with which the end of the request before is told
    later = Watched(history=str(file))
    later.answers(["Hello"], 2)  # the first request of a namespace has it loaded
    later.drafter.requests._namespaces.wait()
    assert later.answers(*NEW) == first[0]
    assert later.steps < first[1]
    with History(file) as kept:
        assert {row.namespace for row in kept.stats()} == {"default"}


def medusa(folder: Any) -> None:
    """Heads that guess what the target's own head says of the state: right where a token comes twice."""
    from safetensors.torch import load_file

    weights = load_file(TINY / "model.safetensors")
    output = nn.Linear(256, 4096, bias=False)
    output.weight.data = weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).float()
    save_speculator(MedusaHeads(MedusaConfig(4096, 256, 2), output), folder)


@pytest.mark.parametrize("kind", ["auto", "blockwise", "medusa"])
def test_trained_heads_serve_again(plain, expected, kind, tmp_path):
    if kind == "medusa":
        medusa(tmp_path / "medusa")
    heads = Watched(speculator=str(tmp_path / "medusa") if kind == "medusa" else kind)
    heads.drafter.states.draft = lambda texts, most, floor: (most.fill(0), heads.drafter.states.paths.fill(0))
    assert heads.answers(PROMPTS) == expected
    assert heads.drafted > 20
    if kind != "medusa":  # which was not trained
        assert heads.accepted > 0.1 * heads.drafted
    asked = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, prompt_logprobs=1, logprobs=1)
    one = heads.llm.generate(PROMPTS[:2], asked, use_tqdm=False)
    assert [list(each.outputs[0].token_ids) for each in one] == [line[:20] for line in expected[:2]]


def test_heads_of_another_model_are_refused(plain, tmp_path):
    save_speculator(MedusaHeads(MedusaConfig(4096, 8, 2)), tmp_path)
    with pytest.raises(Exception, match="a base with states of width 8"):
        Watched(speculator=str(tmp_path))
    with pytest.raises(RequestError, match="speculators"):
        engine(OURS, additional_config={KEY: {"speculators": "auto"}})


def test_heads_are_judged_at_the_temperature_of_the_request(plain):
    torch.manual_seed(0)
    heads = Watched(speculator="auto")
    how = SamplingParams(temperature=1.0, max_tokens=30, ignore_eos=True, seed=5)
    said = heads.llm.generate(PROMPTS, how, use_tqdm=False)
    assert all(len(one.outputs[0].token_ids) == 30 for one in said)
    assert heads.accepted > 0
