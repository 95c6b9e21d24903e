"""The heads as published: against plain numpy written from the papers' formulas, and their losses by hand."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from foretoken.core.errors import ForetokenError
from foretoken.speculators.blockwise import BlockwiseConfig, BlockwiseHeads
from foretoken.speculators.lstm import LSTMSpeculator, LSTMSpeculatorConfig
from foretoken.speculators.medusa import MedusaConfig, MedusaHeads
from foretoken.speculators.mlp import MLPSpeculator, MLPSpeculatorConfig
from foretoken.speculators.module import SpeculatorModule

Array = NDArray[np.float64]
M = TypeVar("M", bound=SpeculatorModule)
WIDTH, VOCAB = 6, 11


def weights(module: nn.Module) -> dict[str, Array]:
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}


def shaken(module: M) -> M:
    """No weight at the value that it starts with."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def output_head() -> nn.Linear:
    head = nn.Linear(WIDTH, VOCAB, bias=False)
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(2))
    return head.requires_grad_(False)


def modules() -> list[SpeculatorModule]:
    torch.manual_seed(0)
    return [
        shaken(MLPSpeculator(MLPSpeculatorConfig(VOCAB, WIDTH, 4, 3))),
        shaken(MLPSpeculator(MLPSpeculatorConfig(VOCAB, WIDTH, 4, 3, tie_weights=True, scale_input=True))),
        shaken(LSTMSpeculator(LSTMSpeculatorConfig(VOCAB, WIDTH, 4, 3))),
        shaken(BlockwiseHeads(BlockwiseConfig(VOCAB, WIDTH, 3, 5), output_head())),
        shaken(MedusaHeads(MedusaConfig(VOCAB, WIDTH, 3, 2), output_head())),
        shaken(MedusaHeads(MedusaConfig(VOCAB, WIDTH, 2, 1, fc_bias=False, shared_output=True), output_head())),
    ]


def mlp_by_hand(w: dict[str, Array], n: int, tied: bool, scaled: bool, state: Array, tokens: list[int]) -> list[Array]:
    """Section 2 of arXiv 2404.19124 and its reference code, in numpy: the logits of every stage."""
    inner = w["emb.0.weight"].shape[1]
    state_weight = 0.5 ** (0.5 / n)
    emb_weight = math.sqrt((1 - state_weight**2) * inner / 2)
    if scaled:
        state = state / np.sqrt((state**2).mean() + 1e-6) / math.sqrt(2)
    found = []
    for i in range(n):
        own, projection = (0, min(i, 1)) if tied else (i, i)
        x = w[f"proj.{projection}.weight"] @ state
        x = x + emb_weight / state_weight * w[f"emb.{own}.weight"][tokens[i]]
        x = x / np.sqrt((x**2).mean() + 1e-6) * w[f"ln.{own}.weight"] + w[f"ln.{own}.bias"]
        state = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
        found.append(w[f"head.{own}.weight"] @ state)
    return found


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_mlp_speculator_computes_the_published_formulas(n: int, tied: bool, scaled: bool) -> None:
    if tied and n == 1:
        return
    config = MLPSpeculatorConfig(VOCAB, WIDTH, 4, n, tie_weights=tied, scale_input=scaled)
    module = shaken(MLPSpeculator(config)).double()
    state, tokens = torch.randn(1, 1, WIDTH, dtype=torch.float64), torch.arange(n + 1)[None] % VOCAB
    expected = mlp_by_hand(weights(module), n, tied, scaled, state[0, 0].numpy(), tokens[0, 1:].tolist())
    found = [logits[0, 0].detach().numpy() for logits in module.head_logits(state, tokens)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def lstm_by_hand(w: dict[str, Array], n: int, scaled: bool, state: Array, tokens: list[int]) -> list[Array]:
    """ArcticInference's ``sum_lstm`` in numpy, a gate at a time."""
    d = w["emb.weight"].shape[1]
    state_weight = 0.5 ** (0.5 / n)
    scale = math.sqrt((1 - state_weight**2) * d / 2) / state_weight

    def activated(x: Array, name: str) -> Array:
        x = x / np.sqrt((x**2).mean() + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]
        return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])

    if scaled:
        state = state / np.sqrt((state**2).mean() + 1e-6) / math.sqrt(2)
    cell, found = np.zeros(d), []
    for i in range(n):
        forget, new, output, candidate = (
            w[f"proj.{min(i, 1)}.weight"][gate * d : (gate + 1) * d] @ state + scale * w["emb.weight"][tokens[i]]
            for gate in range(4)
        )
        cell = cell / (1 + np.exp(-forget)) + activated(candidate, "cell_ln") / (1 + np.exp(-new))
        state = activated(cell, "state_ln") / (1 + np.exp(-output))
        found.append(w["head.weight"] @ state)
    return found


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_lstm_speculator_computes_arctics_formulas(n: int, scaled: bool) -> None:
    module = shaken(LSTMSpeculator(LSTMSpeculatorConfig(VOCAB, WIDTH, 4, n, scaled))).double()
    state, tokens = torch.randn(1, 1, WIDTH, dtype=torch.float64), torch.arange(n + 1)[None] % VOCAB
    expected = lstm_by_hand(weights(module), n, scaled, state[0, 0].numpy(), tokens[0, 1:].tolist())
    found = [logits[0, 0].detach().numpy() for logits in module.head_logits(state, tokens)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_published_constants() -> None:
    """The coefficient of the token's embedding, worked out for published checkpoints."""
    for n, inner, coefficient in [(3, 4096, 23.072), (4, 3072, 17.048), (5, 4096, 17.451), (7, 4096, 14.601)]:
        with torch.device("meta"):
            module = MLPSpeculator(MLPSpeculatorConfig(3, 5, inner, n))
        assert module.token_scale == pytest.approx(coefficient, abs=5e-4)


def test_the_sizes_of_published_checkpoints() -> None:
    for config, millions in [
        (MLPSpeculatorConfig(32000, 4096, 0, 3), 836.8),
        (MLPSpeculatorConfig(32000, 8192, 8192, 5, True, True), 658.5),
        (MLPSpeculatorConfig(128256, 8192, 3584, 4, True, True), 961.6),
    ]:
        with torch.device("meta"):
            module = MLPSpeculator(config)
        assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_blockwise_heads_are_one_layer_before_the_bases_projection() -> None:
    head = output_head()
    module = shaken(BlockwiseHeads(BlockwiseConfig(VOCAB, WIDTH, 3, 5), head))
    w, state = weights(module), torch.randn(WIDTH)
    x = state.double().numpy()
    hidden = np.maximum(w["up.weight"] @ x + w["up.bias"], 0)
    vectors = x + (w["down.weight"] @ hidden + w["down.bias"]).reshape(3, WIDTH)
    expected = vectors @ head.weight.double().numpy().T
    np.testing.assert_allclose(module.all(state).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(torch.stack(list(module.each(state))).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_bases_projection_is_no_part_of_the_blockwise_heads() -> None:
    head = nn.Linear(WIDTH, VOCAB)
    calls: list[int] = []
    head.register_forward_pre_hook(lambda *_: calls.append(1))
    module = BlockwiseHeads(BlockwiseConfig(VOCAB, WIDTH, 3, 5), head)
    torch.stack(module.losses(torch.randn(2, 4, WIDTH), torch.randint(VOCAB, (2, 8)))).sum().backward()
    assert set(module.state_dict()) == {"up.weight", "up.bias", "down.weight", "down.bias"}
    assert head.weight.grad is None and head.bias.grad is None
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert not calls  # the hooks of the base see the base's forwards alone


def test_a_quantized_output_head_is_refused() -> None:
    head = output_head()
    head.weight = nn.Parameter(head.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ForetokenError, match="quantized"):
        BlockwiseHeads(BlockwiseConfig(VOCAB, WIDTH), head)


def test_medusa_heads_are_residual_blocks_and_a_projection() -> None:
    module = shaken(MedusaHeads(MedusaConfig(VOCAB, WIDTH, 3, 2), output_head()))
    w, state = weights(module), torch.randn(WIDTH)
    expected = []
    for i in range(3):
        x = state.double().numpy()
        for j in range(2):
            y = w[f"blocks.{i}.layers.{j}.weight"] @ x + w[f"blocks.{i}.layers.{j}.bias"]
            x = x + y / (1 + np.exp(-y))
        expected.append(w[f"lm_heads.{i}.weight"] @ x)
    np.testing.assert_allclose(module.all(state).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_untrained_medusa_heads_say_what_the_base_says(shared: bool) -> None:
    head, state = output_head(), torch.randn(WIDTH)
    module = MedusaHeads(MedusaConfig(VOCAB, WIDTH, 3, 2, shared_output=shared), head)
    for logits in module.each(state):
        assert torch.equal(logits, head(state))
    assert sum(p.requires_grad for p in module.lm_heads.parameters()) == (0 if shared else 3)


@pytest.mark.parametrize("module", modules(), ids=lambda module: type(module).__name__)
def test_head_i_guesses_the_token_two_and_i_after_the_one_that_was_read(module: SpeculatorModule) -> None:
    torch.manual_seed(4)
    length, n = 5, module.num_heads
    states, tokens = torch.randn(2, length, WIDTH), torch.randint(VOCAB, (2, length + n + 1))
    losses = module.losses(states, tokens)
    assert len(losses) == n
    by_hand = []
    for i, logits in enumerate(module.head_logits(states, tokens)):
        assert logits.shape == (2, length, VOCAB)
        p = logits.detach().double().softmax(-1)
        by_hand.append(-np.mean([math.log(p[b, t, tokens[b, t + 2 + i]]) for b in range(2) for t in range(length)]))
    np.testing.assert_allclose([loss.item() for loss in losses], by_hand, rtol=1e-5)
    torch.stack(losses).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MLPSpeculatorConfig(VOCAB, WIDTH, 4, 1, tie_weights=True), "one stage"),
        (lambda: MLPSpeculatorConfig(VOCAB, WIDTH, 4, 0), "n_predict"),
        (lambda: MLPSpeculatorConfig(VOCAB, WIDTH, -4, 3), "inner_dim"),
        (lambda: MLPSpeculatorConfig(VOCAB, WIDTH, 4, 3, top_k_tokens_per_head=(5, 4)), "3 positive numbers"),
        (lambda: MLPSpeculatorConfig(VOCAB, WIDTH, 4, 3, top_k_tokens_per_head=(5, 4, 0)), "3 positive numbers"),
        (lambda: LSTMSpeculatorConfig(VOCAB, WIDTH, 0), "inner_dim"),
        (lambda: BlockwiseConfig(VOCAB, WIDTH, 0, 4), "num_heads"),
        (lambda: MedusaConfig(VOCAB, 0, 1, 4), "hidden_size"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(make, words: str) -> None:
    with pytest.raises(ForetokenError, match=words):
        make()


def test_the_published_candidates_have_a_default() -> None:
    assert MLPSpeculatorConfig(VOCAB, WIDTH, n_predict=4).top_k_tokens_per_head == (4, 3, 2, 2)
    assert MLPSpeculatorConfig(VOCAB, WIDTH, n_predict=1).top_k_tokens_per_head == (4,)
    assert MLPSpeculatorConfig(VOCAB, WIDTH).inner_dim == WIDTH
