"""The adapter says what the modules say: candidates, probabilities, noise, a row for each node."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from foretoken.core import noise
from foretoken.core.errors import ForetokenError
from foretoken.speculators.blockwise import BlockwiseConfig, BlockwiseHeads
from foretoken.speculators.heads import Stages, TorchHeads, TorchStages, ready
from foretoken.speculators.lstm import LSTMSpeculator, LSTMSpeculatorConfig
from foretoken.speculators.medusa import MedusaConfig, MedusaHeads
from foretoken.speculators.mlp import MLPSpeculator, MLPSpeculatorConfig
from foretoken.speculators.module import IndependentHeads, SequentialHeads
from foretoken.speculators.noise import gumbel

WIDTH, VOCAB = 6, 100


def mlp(tied: bool = True) -> MLPSpeculator:
    torch.manual_seed(0)
    module = MLPSpeculator(MLPSpeculatorConfig(VOCAB, WIDTH, 5, 3, tie_weights=tied, scale_input=tied))
    for head in module.head.parameters():
        head.data = head.data.bfloat16().float()  # so that they lose nothing on a CPU
    return module


def mlp_heads(tied: bool = True) -> IndependentHeads | Stages:
    return ready(mlp(tied), torch.device("cpu"), torch.float32)


def lstm() -> LSTMSpeculator:
    torch.manual_seed(0)
    return LSTMSpeculator(LSTMSpeculatorConfig(VOCAB, WIDTH, 5, 3))


def independent(kind: str) -> IndependentHeads:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCAB, bias=False)
    if kind == "blockwise":
        return BlockwiseHeads(BlockwiseConfig(VOCAB, WIDTH, 3, 5), head)
    module = MedusaHeads(MedusaConfig(VOCAB, WIDTH, 3, 1), head)
    for parameter in module.blocks[2].parameters():
        nn.init.normal_(parameter)
    return module


def state() -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("module", [mlp(), mlp(tied=False), lstm()], ids=["tied", "untied", "lstm"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_row_follows_the_node_it_extends(module: SequentialHeads, temperature: float, on_cpu: bool) -> None:
    stages = ready(module, torch.device("cpu"), torch.float32) if on_cpu else TorchStages(module)
    heads = TorchHeads(stages, temperature, k=10)
    first = heads.start(state(), 7, 20)
    second = heads.extend([0, 0], [2, 0])
    rows, ranks = [1, 0, 1, 0, 1, 1], [3, 4, 0, 9, 2, 5]  # more than are computed at a time
    third = heads.extend(rows, ranks)
    before = first.tokens[0][2], first.tokens[0][0]
    paths = [(before[row], second.tokens[row][rank]) for row, rank in zip(rows, ranks, strict=True)]
    for row, path in enumerate(paths):
        tokens = torch.tensor([[0, 7, *path]])
        logits = [one[0, 0] for one in module.head_logits(state()[None, None], tokens)]
        expected = (logits[2] / (temperature or 1)).log_softmax(-1)
        np.testing.assert_array_equal(third.tokens[row], expected.topk(10).indices)
        np.testing.assert_allclose(third.logprobs[row], expected.topk(10).values.detach(), atol=1e-5)
    for found, num_rows in ((first, 1), (second, 2), (third, 6)):
        assert all(np.asarray(field).shape == (num_rows, 10) for field in found)
        assert not np.asarray(found.noise).any()


@pytest.mark.parametrize("kind", ["blockwise", "medusa"])
def test_independent_heads_run_once_and_say_the_same_in_every_row(kind: str, monkeypatch) -> None:
    module = independent(kind)
    runs: list[int] = []
    run = type(module).all

    def counted(self: IndependentHeads, state: Tensor) -> Tensor:
        runs.append(1)
        return run(self, state)

    monkeypatch.setattr(type(module), "all", counted)
    heads = TorchHeads(module, 0.5)
    found = [heads.start(state(), 7, 20), heads.extend([0, 0], [0, 1]), heads.extend([0, 1, 1], [0, 1, 2])]
    for i, (candidates, rows) in enumerate(zip(found, (1, 2, 3), strict=True)):
        expected = (list(module.each(state()))[i] / 0.5).log_softmax(-1).topk(64)
        for row in range(rows):
            np.testing.assert_array_equal(candidates.tokens[row], expected.indices)
            np.testing.assert_allclose(candidates.logprobs[row], expected.values.detach(), atol=1e-5)
        assert len(candidates.tokens) == rows
    assert len(runs) == 1


@pytest.mark.parametrize("make", [mlp_heads, lambda: independent("blockwise")])
def test_the_noise_is_the_choices_own(make) -> None:
    heads = TorchHeads(make(), 0.8, functools.partial(gumbel, 3), k=4)
    for depth, candidates in enumerate([heads.start(state(), 7, 20), heads.extend([0, 0], [0, 1])]):
        for tokens, values in zip(candidates.tokens, candidates.noise, strict=True):
            np.testing.assert_allclose(values, [noise.gumbel(3, 20 + depth, int(token)) for token in tokens])


def test_no_more_candidates_than_tokens_and_their_chances_make_one() -> None:
    candidates = TorchHeads(mlp_heads(), k=1000).start(state(), 7, 20)
    assert sorted(candidates.tokens[0].tolist()) == list(range(VOCAB))
    assert np.exp(candidates.logprobs).sum() == pytest.approx(1, abs=1e-5)
    assert (np.diff(candidates.logprobs[0]) <= 0).all()


def test_a_new_start_forgets_the_last() -> None:
    heads = TorchHeads(mlp_heads(), k=5)
    first = [heads.start(state(), 7, 20), heads.extend([0], [1])]
    heads.start(-state(), 8, 3)
    again = [heads.start(state(), 7, 20), heads.extend([0], [1])]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.logprobs, other.logprobs)


def test_states_of_another_dtype_are_read() -> None:
    exact = TorchHeads(mlp_heads()).start(state(), 7, 20)
    rounded = TorchHeads(TorchStages(mlp().bfloat16())).start(state(), 7, 20)
    assert np.abs(np.sort(exact.logprobs) - np.sort(rounded.logprobs)).max() < 0.5
    assert TorchHeads(mlp_heads()).start(state().bfloat16(), 7, 20).logprobs.dtype == np.float32


@pytest.mark.parametrize("make", [mlp_heads, lambda: TorchStages(mlp()), lambda: independent("medusa")])
def test_logits_that_are_no_numbers_are_refused(make) -> None:
    with pytest.raises(ForetokenError, match="not numbers"):
        TorchHeads(make()).start(state() * torch.nan, 7, 20)


def test_on_a_cpu_heads_compute_in_float32() -> None:
    """Of a model in half precision, too: one that is loaded in it has rounded weights and exact arithmetic."""
    half = TorchHeads(ready(mlp().half(), torch.device("cpu"), torch.bfloat16)).start(state(), 7, 20)
    exact = TorchHeads(TorchStages(mlp().half().float())).start(state(), 7, 20)
    np.testing.assert_array_equal(half.tokens, exact.tokens)
    np.testing.assert_allclose(half.logprobs, exact.logprobs, atol=1e-5)


def test_a_token_that_the_base_does_not_have_reads_no_other_memory() -> None:
    assert np.isfinite(TorchHeads(mlp_heads()).start(state(), 10**6, 20).logprobs).all()


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**20), st.lists(st.integers(0, 2**20), min_size=1, max_size=5))
def test_the_compiled_noise_is_the_cores(seed: int, position: int, tokens: list[int]) -> None:
    expected = [noise.gumbel(seed, position, token) for token in tokens]
    np.testing.assert_allclose(gumbel(seed, position, np.array([tokens], np.int32))[0], expected, rtol=1e-12, atol=0)
