"""The bundled model: loads as any other, has learned something, and keeps the promise."""

from __future__ import annotations

import random
import shutil
from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import foretoken
from foretoken.engines.transformers.loading import TINY
from helpers.drafting import WITHOUT_HEADS

PROMPTS = sorted((Path(__file__).parent.parent / "examples" / "prompts").iterdir())
OPTIONS = [{"temperature": 0}, {"temperature": 0.8, "top_p": 0.95, "seed": 5}]


@pytest.fixture(scope="module")
def lm() -> foretoken.LanguageModel:
    return foretoken.load("tiny", dtype="float32", device="cpu")


def test_it_is_small_and_loads_as_any_other():
    model = AutoModelForCausalLM.from_pretrained(TINY)
    assert 5e6 <= model.num_parameters() <= 12e6 and model.dtype == torch.bfloat16
    assert 4096 <= len(AutoTokenizer.from_pretrained(TINY)) <= 8192
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 24e6


@pytest.mark.parametrize(("path", "options"), [*zip(PROMPTS, cycle(OPTIONS))], ids=[path.name for path in PROMPTS])
def test_its_text_is_the_same_with_and_without_drafting(lm, path, options):
    plain = lm.generate(path.read_text(), max_new_tokens=48, drafter="none", **options)
    for name in WITHOUT_HEADS:
        drafter = "draft-model:model=tiny" if name == "draft-model" else name
        drafted = lm.generate(path.read_text(), max_new_tokens=48, drafter=drafter, **options)
        assert drafted.tokens == plain.tokens and drafted.stats.steps <= plain.stats.steps


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.name)
def test_it_has_learned_the_order_of_words_and_of_code(lm, path):
    """Nats per token on text of its kinds, beside the same tokens shuffled."""

    @torch.inference_mode()
    def loss(tokens: list[int]) -> float:
        ids = torch.tensor([tokens])
        return float(lm.model(input_ids=ids, labels=ids).loss)

    tokens = lm.encode(path.read_text())
    assert loss(tokens) < 4.2 < 6 < loss(random.Random(0).sample(tokens, len(tokens)))


@pytest.mark.parametrize("kind", ["speculator", "blockwise"])
def test_the_heads_that_ship_are_small_and_have_learned(kind, tmp_path):
    """Beside the same heads with the numbers of each tensor shuffled."""
    folder, control = TINY / kind, tmp_path / "shuffled"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3e6 and (folder / "README.md").is_file()
    shutil.copytree(folder, control)
    torch.manual_seed(0)
    tensors = load_file(folder / "model.safetensors")
    shuffled = {name: one.flatten()[torch.randperm(one.numel())].view_as(one) for name, one in tensors.items()}
    save_file(shuffled, control / "model.safetensors")

    def accepted(of: Path) -> float:
        """Guesses that hold, of a step."""
        asked = foretoken.load(
            "tiny", dtype="float32", device="cpu", background=None, drafter="speculator", speculator=of
        )
        texts, budget = [path.read_text() for path in PROMPTS], foretoken.FixedBudget(4)
        stats = [one.stats for one in asked.generate(texts, max_new_tokens=48, temperature=0, budget=budget)]
        return sum(one.accepted for one in stats) / sum(one.steps for one in stats)

    assert accepted(folder) > 0.3 > 0.05 > accepted(control)


def test_the_heads_that_ship_are_found_and_join_mixed_where_they_are_asked_for(lm):
    plain = lm.generate("def f(x):", max_new_tokens=24, temperature=0, drafter="none")
    for drafter in ("speculator", "mixed:heads=true", "refined-speculator"):
        assert lm.generate("def f(x):", max_new_tokens=24, temperature=0, drafter=drafter).tokens == plain.tokens


def test_the_rescorer_that_ships_makes_drafts_of_the_blockwise_heads_better():
    lm = foretoken.load("tiny", dtype="float32", device="cpu", background=None, speculator="blockwise")
    assert sum(path.stat().st_size for path in (TINY / "blockwise" / "rescorer").iterdir()) < 3e6
    texts, budget = [path.read_text() for path in PROMPTS], foretoken.FixedBudget(4)
    accepted = []
    for recipe in ("speculator:noise=false,width=1", "refined-speculator:by=network,noise=false,width=1"):
        answers = lm.generate(texts, max_new_tokens=64, temperature=0.8, seed=1, drafter=recipe, budget=budget)
        accepted.append(sum(one.stats.accepted for one in answers) / sum(one.stats.steps for one in answers))
    assert accepted[1] > 1.1 * accepted[0]


def test_it_can_be_spoken_to(lm):
    result = lm.generate([{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=40)
    assert result.text.strip()
