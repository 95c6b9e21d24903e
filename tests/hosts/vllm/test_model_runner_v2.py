"""Our speculator for vLLM's newer runner, on tensors of a CPU with a stand-in for the runner. No GPU was at hand."""

from __future__ import annotations

import importlib
import sys
from abc import ABC
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from foretoken.core.errors import ModelError
from foretoken.hosts.vllm.options import KEY

NAME = "foretoken.hosts.vllm.model_runner_v2"
MOST, WIDTH, LENGTH = 6, 4, 64
CPU = torch.device("cpu")
COUNT = [1, 2, 3, 4, 5, 6] * 3


class Group:
    """The ranks that share a model; what rank 0 sends is kept."""

    def __init__(self, rank=0, size=1, sent=None):
        self.rank_in_group, self.world_size, self.sent = rank, size, [] if sent is None else sent

    def broadcast(self, tensor, src):
        if self.rank_in_group == src:
            self.sent.append(tensor.clone())
        else:
            tensor.copy_(self.sent.pop(0))


@pytest.fixture(params=["a stand-in for vLLM", pytest.param("vLLM", marks=pytest.mark.vllm)])
def module(request, monkeypatch):
    """Our module, on top of vLLM's own base class where it is installed."""
    if request.param == "vLLM":
        pytest.importorskip("vllm", reason="vLLM is not installed in this environment")
    else:
        parts = {
            "vllm": {"__version__": "0.32.0"},
            "vllm.distributed.parallel_state": {"get_tp_group": None},
            "vllm.utils.gpu_sync_debug": {"gpu_sync_allowed": nullcontext},
            "vllm.v1.worker.gpu.spec_decode.speculator": {"BaseSpeculator": ABC},
        }
        for name, holds in parts.items():
            while name:
                made = sys.modules.get(name)
                if made is None or not hasattr(made, "stand_in"):
                    made = ModuleType(name)
                    made.__dict__["stand_in"] = True
                    monkeypatch.setitem(sys.modules, name, made)
                made.__dict__.update(holds)
                name, holds = name.rpartition(".")[0], {}
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


def config(adaptive=False, **options):
    return SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=LENGTH, get_vocab_size=lambda: 100, skip_tokenizer_init=True),
        scheduler_config=SimpleNamespace(max_num_seqs=MOST),
        speculative_config=SimpleNamespace(num_speculative_tokens=WIDTH, enable_adaptive_verification=adaptive),
        additional_config={KEY: options},
    )


class Runner:
    """What of vLLM's runner a speculator meets: places of requests that are given again, and batches in any order."""

    def __init__(self, module, monkeypatch, group=None, **how):
        monkeypatch.setattr(module, "get_tp_group", lambda: group or Group())
        self.states = SimpleNamespace(
            req_id_to_index={},
            all_token_ids=SimpleNamespace(gpu=torch.zeros(MOST, LENGTH, dtype=torch.int32)),
            total_len=SimpleNamespace(gpu=torch.zeros(MOST, dtype=torch.int32)),
        )
        self.free = list(range(MOST))
        self.speculator = module.ForetokenSpeculator(config(**how), CPU, self.states)

    def begin(self, name, tokens, tell=True, **options):
        if tell:
            sampling = SimpleNamespace(extra_args={KEY: options}, temperature=0.0)
            self.speculator.follow([SimpleNamespace(req_id=name, sampling_params=sampling)], [])
        place = self.states.req_id_to_index[name] = self.free.pop()
        self._write(place, 0, tokens)

    def _write(self, place, start, tokens):
        self.states.all_token_ids.gpu[place, start : start + len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        self.states.total_len.gpu[place] = start + len(tokens)

    def end(self, name, tell=True):
        self.free.append(self.states.req_id_to_index.pop(name))
        if tell:
            self.speculator.follow([], [name])

    def step(self, width=None, **new):
        """These requests commit these tokens, in this order; none for a part of a prompt."""
        places = [self.states.req_id_to_index[name] for name in new]
        for place, tokens in zip(places, new.values(), strict=True):
            self._write(place, int(self.states.total_len.gpu[place]), tokens)
        batch = SimpleNamespace(
            num_reqs=len(new), req_ids=list(new), idx_mapping=torch.tensor(places), idx_mapping_np=np.array(places)
        )
        drafts = self.propose(batch, torch.tensor([len(tokens) for tokens in new.values()], dtype=torch.int32), width)
        assert drafts.dtype == torch.int64
        assert drafts.shape == (len(new), WIDTH)
        return dict(zip(new, drafts.tolist(), strict=True))

    def propose(self, batch, num_sampled, width=None, dummy=False):
        nothing = torch.zeros(0)
        return self.speculator.propose(
            batch, None, None, nothing, None, num_sampled, nothing, nothing, nothing, nothing, nothing,
            dummy_run=dummy, num_speculative_tokens=width,
        )  # fmt: skip

    @property
    def chances(self):
        return self.speculator.draft_token_confidence_probs


@pytest.fixture
def runner(module, monkeypatch):
    return Runner(module, monkeypatch)


def test_drafts_have_a_fixed_width_and_what_is_not_guessed_has_no_chance(runner):
    runner.begin("a", COUNT)
    runner.begin("b", [9, 8, 7])
    drafts = runner.step(b=[30], a=[1])
    assert drafts == {"b": [30] * WIDTH, "a": [2, 3, 4, 5]}
    assert runner.chances[0].tolist() == [0.0] * WIDTH
    assert ((runner.chances[1] > 0.3) & (runner.chances[1] <= 1)).all()


def test_texts_are_followed_through_steps_orders_and_accepted_drafts(runner):
    runner.begin("a", COUNT)
    runner.begin("b", [40, 41, 42, 43, 40])
    runner.step(a=[1], b=[41])
    assert runner.step(b=[42], a=[2, 3, 4, 5])["a"] == [6, 1, 2, 3]
    assert runner.step(a=[6])["a"] == [1, 2, 3, 4], "a request may be left out of a step"
    assert runner.step(a=[1], b=[43])["b"][0] == 40


def test_a_part_of_a_prompt_is_no_text_to_draft_after(runner):
    runner.begin("a", COUNT)
    assert runner.step(a=[])["a"] == [6] * WIDTH
    assert not runner.chances[0].any()
    assert runner.step(a=[1])["a"] == [2, 3, 4, 5]


def test_chances_are_those_of_each_token_given_the_ones_before(runner):
    runner.begin("a", COUNT)
    runner.step(a=[1])
    place = runner.states.req_id_to_index["a"]
    paths = torch.from_numpy(runner.speculator._states.paths[place])
    assert runner.chances[0].cumprod(0) == pytest.approx(paths)


def test_options_and_the_width_of_the_step_limit_a_draft(runner):
    runner.begin("a", COUNT, limit=2)
    runner.begin("b", COUNT, draft=False)
    drafts = runner.step(a=[1], b=[1])
    assert drafts == {"a": [2, 3, 1, 1], "b": [1] * WIDTH}
    assert runner.step(1, a=[2])["a"] == [3, 2, 2, 2]
    runner.begin("c", COUNT)
    assert runner.step(0, c=[1])["c"] == [1] * WIDTH


def test_no_token_beyond_the_context_is_guessed(runner):
    runner.begin("a", (COUNT * 4)[: LENGTH - 4])
    assert runner.step(a=[5])["a"] == [6, 1, 5, 5]


@pytest.mark.parametrize("tell", [True, False])
def test_an_end_frees_teaches_and_its_place_is_anothers(runner, tell):
    """Without a worker of ours nothing is told; the runner's own table says who is there."""
    runner.begin("a", [50], tell)
    runner.step(a=COUNT[:12])
    runner.end("a", tell)
    runner.begin("b", [60, 1, 2, 3], tell)
    assert runner.step(b=[4])["b"][:2] == [5, 6]
    assert list(runner.speculator._places) == ["b"]
    assert len(runner.speculator.requests) == len(runner.speculator._states) == 1


def test_a_preempted_request_goes_on_in_another_place(runner):
    runner.begin("a", COUNT)
    runner.step(a=[1])
    runner.end("a", tell=False)
    runner.begin("other", [70, 71])
    runner.begin("a", [*COUNT, 1])
    assert runner.step(a=[2], other=[72])["a"] == [3, 4, 5, 6]


def test_namespaces_share_nothing(runner):
    runner.begin("a", [50], namespace="one")
    runner.step(a=COUNT[:12])
    runner.end("a")
    runner.begin("b", [60, 61, 62, 3], namespace="two")
    runner.begin("c", [60, 61, 62, 3], namespace="one")
    drafts = runner.step(b=[4], c=[4])
    assert drafts["b"] == [4] * WIDTH
    assert drafts["c"][:2] == [5, 6]


def test_a_dummy_run_learns_nothing(runner):
    drafts = runner.propose(SimpleNamespace(num_reqs=3), torch.ones(3), dummy=True)
    assert drafts.shape == (3, WIDTH)
    assert len(runner.speculator._states) == 0


def test_ranks_that_share_a_model_verify_the_same_drafts(module, monkeypatch):
    sent = []
    first = Runner(module, monkeypatch, Group(0, 2, sent))
    second = Runner(module, monkeypatch, Group(1, 2, sent))
    for rank in (first, second):
        rank.begin("a", COUNT)
        drafts = rank.step(a=[1])
        assert drafts["a"] == [2, 3, 4, 5]
    assert torch.equal(first.chances, second.chances)
    assert len(second.speculator._states) == 0, "only one rank looks anything up"


@pytest.mark.parametrize("wanted", [True, False])
def test_verification_adapts_where_the_config_says_so(module, monkeypatch, wanted):
    assert Runner(module, monkeypatch, adaptive=wanted).speculator.enable_adaptive_verification is wanted


def test_trained_heads_and_watermarks_are_refused(module, monkeypatch):
    with pytest.raises(ModelError, match="newer model runner"):
        Runner(module, monkeypatch, speculator="auto")


def test_vllms_own_trimming_keeps_the_likeliest_tokens_of_ours(module, monkeypatch):
    if hasattr(sys.modules["vllm"], "stand_in"):
        pytest.skip("the stand-in trims nothing")
    from vllm.v1.worker.gpu.spec_decode import adaptive_verification

    runner = Runner(module, monkeypatch, adaptive=True)
    runner.begin("a", COUNT)
    runner.begin("b", [40, 41, 42, 43, 44, 45, 40])
    runner.step(a=[1], b=[41])
    survival = runner.chances[:2].cumprod(1)
    assert (survival[0] > survival[1]).all(), "a text read three times is surer than one read once"
    for budget in range(1, 2 * WIDTH):
        kept = torch.full((2,), WIDTH, dtype=torch.int32)
        adaptive_verification._assign_draft_token_budget(runner.chances, torch.arange(2), kept, budget, WIDTH)
        best = survival.flatten().sort(descending=True).values[:budget]
        assert kept.sum() == budget
        assert sum(survival[row, : kept[row]].sum() for row in range(2)) == pytest.approx(best.sum())
