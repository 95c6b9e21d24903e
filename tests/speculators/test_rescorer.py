"""The rescorer: its formula in plain numpy, what it reads, its file by hand, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

import foretoken
from foretoken import ForetokenError, Step
from foretoken.core.draft import Draft
from foretoken.speculators.formats import load_rescorer, load_speculator, save_speculator
from foretoken.speculators.rescorer import READ, RecurrentRescorer, TorchRescorer
from helpers.heads import random_speculator
from helpers.shapes import VOCAB, tiny_model
from helpers.tokenizing import character_tokenizer

INNER, SOME = 5, 11
Arrays = dict[str, NDArray[np.float32]]


def arrays(vocab: int = SOME) -> Arrays:
    rng = np.random.default_rng(0)
    shapes = {
        "cell.emb.0.weight": (vocab, INNER),
        "cell.proj.0.weight": (INNER, INNER),
        "cell.head.0.weight": (vocab, INNER),
        "cell.ln.0.weight": (INNER,),
        "cell.ln.0.bias": (INNER,),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def saved(folder: Path, vocab: int = SOME, **change: object) -> Path:
    folder.mkdir(parents=True)
    config = {"architectures": ["RecurrentRescorer"], "vocab_size": vocab, "inner_dim": INNER}
    (folder / "config.json").write_text(json.dumps(config | change))
    save_file(arrays(vocab), folder / "model.safetensors")
    return folder


def by_hand(tokens: list[int]) -> NDArray[np.float64]:
    """The chance of every token after these."""
    w = {name.removeprefix("cell."): array.astype(np.float64) for name, array in arrays().items()}
    state = np.zeros(INNER)
    for token in tokens:
        x = w["proj.0.weight"] @ state + math.sqrt(INNER / 2) * w["emb.0.weight"][token]
        x = x / np.sqrt((x**2).mean() + 1e-6) * w["ln.0.weight"] + w["ln.0.bias"]
        state = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    logits = w["head.0.weight"] @ state
    powers = np.exp(logits - logits.max())
    chances: NDArray[np.float64] = powers / powers.sum()
    return chances


def test_chances_are_those_after_all_that_was_read_and_the_guesses(tmp_path):
    rescorer = TorchRescorer(load_rescorer(saved(tmp_path / "r"), SOME))
    for _ in range(2):  # what was read before a sequence is forgotten
        rescorer.begin([3, 1, 4])
        rescorer.observe(Step(Draft(), (1, 5)))
    paths, named = np.array([[9, 2], [6, 5]], np.int32), np.array([[0, 3, 10], [1, 1, 2]], np.int32)
    for _ in range(2):  # asking changes nothing
        found = rescorer.chances(paths, named)
    for row, (path, tokens) in enumerate(zip(paths, named, strict=True)):
        expected = by_hand([3, 1, 4, 1, 5, *path])
        np.testing.assert_allclose(found[row], [*expected[tokens], 0.0], rtol=1e-4)
    first = rescorer.chances(np.zeros((1, 0), np.int32), named[:1])
    np.testing.assert_allclose(first[0, :3], by_hand([3, 1, 4, 1, 5])[named[0]], rtol=1e-4)


def test_it_begins_with_as_much_of_a_prompt_as_its_training_saw(tmp_path):
    rescorer = TorchRescorer(load_rescorer(saved(tmp_path / "r"), SOME))
    long = [*range(SOME)] * 20
    named = np.arange(SOME, dtype=np.int32)[None]
    rescorer.begin(long)
    found = rescorer.chances(np.zeros((1, 0), np.int32), named)
    np.testing.assert_allclose(found[0, :SOME], by_hand(long[-READ:]), rtol=1e-3)


def test_its_training_reads_the_tokens_before_the_one_that_is_guessed(tmp_path):
    module = load_rescorer(saved(tmp_path / "r"), SOME)
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9]])
    (logits,) = module.head_logits(torch.zeros(1, 3, 7), tokens)
    for place in range(3):
        chances = logits[0, place].softmax(-1).detach().numpy()
        np.testing.assert_allclose(chances, by_hand(tokens[0, : place + 2].tolist()), rtol=1e-4)


def test_a_round_trip_changes_nothing(tmp_path):
    save_speculator(load_rescorer(saved(tmp_path / "a"), SOME), tmp_path / "b")
    again = load_rescorer(tmp_path / "b", SOME)
    assert isinstance(again, RecurrentRescorer)
    assert all(np.array_equal(again.state_dict()[name].numpy(), array) for name, array in arrays().items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architectures": ["BlockwiseHeads"]}, r"describes no rescorer, but \['BlockwiseHeads'\]"),
        ({"architectures": None}, "describes no rescorer, but None"),
        ({"inner_dim": "x"}, "'x' as inner_dim"),
        ({"inner_dim": 4}, r"has the shape \[11, 5\] instead of \[11, 4\]"),
        ({"vocab_size": 12}, "a vocabulary of size 12, and the base's is 11"),
    ],
)
def test_what_is_no_rescorer_of_the_model_is_refused(change, sentence, tmp_path):
    with pytest.raises(ForetokenError, match=rf"The rescorer .* cannot be loaded: .*{sentence}"):
        load_rescorer(saved(tmp_path / "r", **change), SOME)


def test_a_rescorer_is_no_speculator(tmp_path):
    with pytest.raises(ForetokenError, match=r"describes no MLP or LSTM speculator.*'RecurrentRescorer'"):
        load_speculator(saved(tmp_path / "r"), 4, SOME, torch.nn.Linear(4, SOME))


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.8, "seed": 3}])
def test_drafts_that_it_rescored_change_no_text(options, tmp_path):
    save_speculator(random_speculator(tiny_model("llama"), "blockwise"), tmp_path / "heads")
    lm = foretoken.LanguageModel(
        tiny_model("llama"), character_tokenizer(), background=None, speculator=tmp_path / "heads"
    )
    with pytest.raises(ForetokenError, match="needs a rescorer beside the heads, and there is none"):
        lm.generate("abc", drafter="refined-speculator:by=network")
    saved(tmp_path / "heads" / "rescorer", VOCAB)
    plain = lm.generate("abc", drafter="none", max_new_tokens=40, **options)
    for recipe in ("by=network", "by=network,tree=paths"):
        drafted = lm.generate(
            "abc",
            drafter=f"refined-speculator:{recipe}",
            max_new_tokens=40,
            budget=foretoken.FixedBudget(20),
            **options,
        )
        assert drafted.tokens == plain.tokens and drafted.stats.drafted > 40


def test_by_is_one_of_two():
    with pytest.raises(ForetokenError, match="by is 'magic': choose ngrams or network"):
        foretoken.load("toy", background=None, drafter="refined-speculator:by=magic")
