"""Trained heads guess for a batch as for one sequence, and learn their chances for each namespace by itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from foretoken.core.errors import ModelError
from foretoken.hosts.vllm.heads import BatchHeads, load_heads
from foretoken.speculators.formats import save_speculator
from foretoken.speculators.heads import TorchHeads, TorchStages
from foretoken.speculators.medusa import MedusaConfig, MedusaHeads
from foretoken.speculators.mlp import MLPSpeculator, MLPSpeculatorConfig
from foretoken.speculators.module import SequentialHeads

WIDTH, VOCAB, ROWS = 12, 40, 5


@pytest.fixture(params=["mlp", "medusa"])
def heads(request):
    torch.manual_seed(3)
    if request.param == "mlp":
        return MLPSpeculator(MLPSpeculatorConfig(VOCAB, WIDTH, 8, 3, scale_input=True)).eval()
    return MedusaHeads(MedusaConfig(VOCAB, WIDTH, 3), nn.Linear(WIDTH, VOCAB, bias=False)).eval()


@pytest.fixture
def states():
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(4))


class Someone:
    """A namespace."""


def chain(heads, state, token):
    """What the same heads guess by the adapter for one sequence: each its likeliest token after those before it."""
    one = TorchHeads(TorchStages(heads) if isinstance(heads, SequentialHeads) else heads)
    said = [one.start(state, token, 9)]
    said += [one.extend([0], [0]) for _ in range(heads.num_heads - 1)]
    return [int(each.tokens[0, 0]) for each in said], [float(np.exp(each.logprobs[0, 0])) for each in said]


def test_a_batch_is_guessed_for_as_one_sequence_is(heads, states):
    someone = Someone()
    tokens, paths = BatchHeads(heads, 8).guess(states, range(ROWS), [0.0] * ROWS, [someone] * ROWS, 0.0)
    assert tokens.shape == paths.shape == (ROWS, 3)
    for row in range(ROWS):
        wanted, chances = chain(heads, states[row], row)
        assert tokens[row].tolist() == wanted
        assert paths[row] == pytest.approx(np.cumprod(chances), rel=0.05)  # nothing has been learned yet


def test_no_more_heads_are_asked_than_a_draft_has_tokens_or_than_hope_is_left(heads, states):
    someone = [Someone()] * ROWS
    tokens, _ = BatchHeads(heads, 2).guess(states, range(ROWS), [0.0] * ROWS, someone, 0.0)
    assert tokens.shape == (ROWS, 2)
    _, paths = BatchHeads(heads, 8).guess(states, range(ROWS), [0.0] * ROWS, someone, 1.1)
    assert not paths.any()


def test_a_hotter_choice_is_less_certain(heads, states):
    someone = [Someone()] * ROWS
    _, cold = BatchHeads(heads, 1).guess(states, range(ROWS), [0.5] * ROWS, someone, 0.0)
    _, hot = BatchHeads(heads, 1).guess(states, range(ROWS), [2.0] * ROWS, someone, 0.0)
    assert (hot < cold).all()


def test_chances_follow_what_came_in_their_own_namespace_alone(heads, states):
    lucky, other = Someone(), Someone()
    batch = BatchHeads(heads, 8)
    both = [lucky, lucky, other, other, other]

    def guess():
        return batch.guess(states, range(ROWS), [0.0] * ROWS, both, 0.0)

    tokens, before = guess()
    for _ in range(60):
        batch.learn([*(line.tolist() for line in tokens[:2]), [], [], []])
        tokens, after = guess()
    assert (after[:2, 0] > before[:2, 0]).all()
    assert (after[2:] == before[2:]).all()
    lucky_chances = after[:2, 0]
    for _ in range(200):
        batch.learn([*([(line[0] + 1) % VOCAB] for line in tokens[:2]), [], [], []])
        tokens, after = guess()
    assert (after[:2, 0] < lucky_chances).all()


def test_files_are_found_checked_and_refused(heads, tmp_path):
    save_speculator(heads, tmp_path / "model" / "speculator")
    config = SimpleNamespace(
        model=str(tmp_path / "model"), dtype=torch.float32, get_hidden_size=lambda: WIDTH, get_vocab_size=lambda: VOCAB
    )
    for name in ("auto", "speculator", str(tmp_path / "model" / "speculator")):
        assert load_heads(name, nn.Linear(1, 1), config, torch.device("cpu"), 2).num_heads == 2
    with pytest.raises(ModelError, match="no speculator folder"):
        load_heads("elsewhere", nn.Linear(1, 1), config, torch.device("cpu"), 2)
    config.get_vocab_size = lambda: VOCAB + 1
    with pytest.raises(ModelError, match="a base with a vocabulary of size 40"):
        load_heads("auto", nn.Linear(1, 1), config, torch.device("cpu"), 2)
