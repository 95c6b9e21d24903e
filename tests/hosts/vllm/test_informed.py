"""The drafter within our worker, with a stand-in for vLLM's side: names, ends, options, namespaces and heads."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from foretoken.hosts.vllm.informed import Forward, InformedDrafter
from foretoken.hosts.vllm.options import KEY
from foretoken.hosts.vllm.worker import TellsDrafter
from helpers.vllm_rows import AsksHeads, DraftsAll

LENGTH, ROWS = 64, 4


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.__dict__["__version__"] = "0.32.0"
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.fixture
def drafter():
    return make()


def make(**options):
    made = InformedDrafter(
        SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=LENGTH, get_vocab_size=lambda: 100, skip_tokenizer_init=True),
            scheduler_config=SimpleNamespace(max_num_seqs=ROWS),
            speculative_config=SimpleNamespace(num_speculative_tokens=4),
            additional_config={KEY: options},
        )
    )
    made.budget, made._arms = DraftsAll(), AsksHeads()
    return made


class Engine:
    """A batch of vLLM's: rows in whatever order, of which each commits what it is told."""

    def __init__(self, drafter):
        self.drafter, self.texts, self.ended = drafter, {}, []

    def step(self, order, **new):
        """Each request of ``order`` commits some tokens; one that is not known begins, with a prompt before them."""
        started = [name for name in order if name not in self.texts]
        requests = [SimpleNamespace(req_id=name, sampling_params=new.pop(f"{name}_params", None)) for name in started]
        self.drafter.follow(requests, self.ended)
        self.ended = []
        for name in order:
            self.texts.setdefault(name, list(new.pop(f"{name}_prompt", [])))
            self.texts[name] += new[name]
        matrix = np.zeros((ROWS, LENGTH), np.int32)
        for row, name in enumerate(order):
            matrix[row, : len(self.texts[name])] = self.texts[name]
        lengths = np.array([len(self.texts[name]) for name in order], np.int32)
        self.drafter.inform(Forward(order, torch.zeros(len(order), 2), [1] * len(order)))
        drafts = self.drafter.propose([new[name] for name in order], lengths, matrix)
        return dict(zip(order, drafts, strict=True))

    def end(self, *names):
        self.ended += names
        for name in names:
            del self.texts[name]


def params(**options):
    return SimpleNamespace(extra_args={KEY: options}, temperature=0.0)


COUNT = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1]


def test_requests_are_known_by_name_wherever_their_rows_are(drafter):
    engine = Engine(drafter)
    engine.step(["a", "b"], a_prompt=COUNT, a=[2], b_prompt=[9, 8, 7], b=[6])
    drafts = engine.step(["b", "a"], a=[3], b=[5])
    assert drafts["a"][:2] == [4, 5]
    assert len(drafter.states) == len(drafter.requests) == 2


def test_an_end_frees_and_teaches_the_namespace(drafter):
    engine = Engine(drafter)
    engine.step(["a"], a_prompt=[50], a=COUNT)
    engine.end("a")
    drafts = engine.step(["b"], b_prompt=[60, 1, 2, 3], b=[4])
    assert drafts["b"][:2] == [5, 6]
    assert len(drafter.states) == len(drafter.requests) == 1


@pytest.mark.parametrize("apart", [{"namespace": "x"}, {"namespace": None}])
def test_another_namespace_draws_nothing_from_it(drafter, apart):
    engine = Engine(drafter)
    engine.step(["a"], a_prompt=[50], a=COUNT)
    engine.end("a")
    said = {"b_params": params(**apart)}
    assert engine.step(["b"], b_prompt=[60, 61, 62, 3], b=[4], **said)["b"] == []
    engine.end("b")
    said = {"c_params": params(**apart)}
    drafts = engine.step(["c"], c_prompt=[70, 71, 72, 3], c=[4], **said)
    assert drafts["c"] == []
    engine.end("c")
    assert engine.step(["d"], d_prompt=[80, 81, 82, 3], d=[4])["d"][:2] == [5, 6]


def test_options_limit_and_turn_off(drafter):
    engine = Engine(drafter)
    said = {"a_params": params(limit=1), "b_params": params(draft=False), "c_params": params(limit=100)}
    drafts = engine.step(["a", "b", "c"], **{f"{name}_prompt": COUNT for name in "abc"}, a=[2], b=[2], c=[2], **said)
    assert (len(drafts["a"]), drafts["b"], len(drafts["c"])) == (1, [], 4)
    assert len(drafter.states) == 2, "nothing of a request without drafts is kept"


def test_wrong_options_that_nobody_refused_mean_no_drafts(drafter, caplog):
    drafts = Engine(drafter).step(["a"], a_prompt=COUNT, a=[2], a_params=params(limit="much"))
    assert drafts["a"] == []
    assert "not drafted for" in caplog.text


def test_thousands_of_requests_leave_nothing_behind(drafter):
    engine = Engine(drafter)
    for i in range(500):
        name = f"r{i}"
        engine.step([name], **{f"{name}_prompt": [i % 90, 3], name: [4, 5]})
        engine.end(name)
    engine.step(["last"], last_prompt=[1], last=[2])
    assert len(drafter.states) == len(drafter.requests) == 1


class EchoHeads:
    """Heads that guess the number which stands in the state, and say how sure they are."""

    num_heads = 2

    def __init__(self, path):
        self.path, self.learned = path, []

    def guess(self, states, last, temperatures, namespaces, floor):
        tokens = np.stack([states[:, 0].numpy().astype(np.int32), np.array(last, np.int32)], 1)
        return tokens, np.full(tokens.shape, self.path, np.float32)

    def learn(self, committed):
        self.learned.append(committed)


def informed(drafter, heads, sampled, num_logits, states, texts):
    drafter._heads = heads
    names = [f"r{row}" for row in range(len(sampled))]
    drafter.follow([SimpleNamespace(req_id=name, sampling_params=None) for name in names], [])
    matrix = np.zeros((ROWS, LENGTH), np.int32)
    for row, text in enumerate(texts):
        matrix[row, : len(text)] = text
    drafter.inform(Forward(names, torch.tensor(states)[:, None], num_logits))
    return drafter.propose(sampled, np.array([len(text) for text in texts], np.int32), matrix)


def test_heads_read_the_state_that_chose_each_last_token(drafter):
    """Rows 0 and 2 had drafts, of which one token and none were accepted; row 1 reads its prompt."""
    heads = EchoHeads(0.9)
    texts = [[7, 8, 21, 22], [5, 6], [9, 31]]
    drafts = informed(drafter, heads, [[21, 22], [], [31]], [3, 1, 3], [0.0, 10, 0, 0, 40, 0, 0], texts)
    assert drafts == [[10, 22], [], [40, 31]]
    drafter.inform(Forward(["r2", "r0"], torch.zeros(2, 1), [1, 1]))
    matrix = np.zeros((ROWS, LENGTH), np.int32)
    matrix[0, :3], matrix[1, :5] = [9, 31, 40], [7, 8, 21, 22, 11]
    drafter.propose([[40], [11]], np.array([3, 5], np.int32), matrix)
    assert heads.learned == [[], [[11], [40]]]
    drafter.inform(Forward(["r2"], torch.zeros(1, 1), [1]))  # near the end of the context nothing is proposed
    drafter.inform(Forward(["r2"], torch.zeros(1, 1), [1]))
    drafter.propose([[50]], np.array([5], np.int32), matrix)
    assert heads.learned[2:] == [[]]


def test_of_two_chains_the_one_that_promises_more_is_drafted(drafter):
    seen = [1, 2, 3, 9, 1, 2, 4, 9, 1, 2]  # either may follow
    assert informed(drafter, EchoHeads(0.01), [[2]], [1], [77.0], [seen])[0][0] in (3, 4)
    assert informed(make(), EchoHeads(0.999), [[2]], [1], [77.0], [seen]) == [[77, 2]]


def test_heads_are_not_asked_where_the_text_is_sure_or_asking_does_not_pay(drafter):
    sure, unsure = [*COUNT * 2, 2], [50, 60]
    drafts = informed(drafter, EchoHeads(0.999), [[2], [60]], [1, 1], [77.0, 78.0], [sure, unsure])
    assert drafts == [[3, 4, 5, 6], [78, 60]]
    tired = make()
    tired._arms.asks = False
    assert informed(tired, EchoHeads(0.999), [[60]], [1], [78.0], [unsure]) == [[]]
    assert tired._asked == []


def test_what_a_step_gave_counts_for_the_choice_that_was_made_before_it(drafter):
    informed(drafter, EchoHeads(0.9), [[60]], [1], [78.0], [[50, 60]])
    matrix = np.zeros((ROWS, LENGTH), np.int32)
    matrix[0, :4] = [50, 60, 78, 61]
    drafter.inform(Forward(["r0"], torch.zeros(3, 1), [3]))
    drafter.propose([[78, 61]], np.array([4], np.int32), matrix)
    assert drafter._arms.added == [(True, 2)]


def test_a_worker_tells_only_a_drafter_that_listens():
    told = []

    class Base:
        use_v2_model_runner = False
        model_runner = SimpleNamespace(
            drafter=SimpleNamespace(follow=lambda *said: told.append(said), inform=told.append),
            execute_model_state=SimpleNamespace(
                spec_decode_metadata=SimpleNamespace(num_draft_tokens=[2, 0]), sample_hidden_states="states"
            ),
            input_batch=SimpleNamespace(req_ids=["a", "b"]),
        )

        def execute_model(self, scheduler_output):
            return "executed"

        def sample_tokens(self, grammar_output):
            return "sampled"

    class Worker(TellsDrafter, Base):
        pass

    worker = Worker()
    assert worker.execute_model(SimpleNamespace(scheduled_new_reqs=["n"], finished_req_ids={"f"})) == "executed"
    assert worker.sample_tokens(None) == "sampled"
    assert told == [(["n"], {"f"}), Forward(["a", "b"], "states", [3, 1])]
    worker.model_runner.drafter = SimpleNamespace(propose=None)  # another's
    assert worker.execute_model(None) == "executed"
    assert worker.sample_tokens(None) == "sampled"
