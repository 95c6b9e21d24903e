"""Trained heads at the doors: found, named, turned off, refused with a sentence; they know the choice's noise."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

import foretoken
from foretoken import ForetokenError, LanguageModel
from foretoken.core.noise import gumbel
from foretoken.engines.transformers import speculator
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.speculator import temperature_of
from foretoken.speculators.formats import save_speculator
from foretoken.speculators.heads import ready
from helpers.commanding import call
from helpers.heads import KINDS, random_speculator, torch_heads
from helpers.shapes import tiny_model
from helpers.tokenizing import character_tokenizer

OPTIONS = [{"temperature": 0}, {"temperature": 0.8, "seed": 3}]


def saved(folder: Path, kind: str = "mlp", shape: str = "llama") -> Path:
    save_speculator(random_speculator(tiny_model(shape), kind), folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """A model with trained heads in its folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    saved(folder / "speculator")
    return folder


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_text_is_the_same_with_heads_that_were_named(tmp_path, kind, options):
    lm = LanguageModel(tiny_model("llama"), character_tokenizer(), background=None, speculator=saved(tmp_path, kind))
    plain = lm.generate("abc", drafter="none", max_new_tokens=40, **options)
    drafted = lm.generate("abc", drafter="speculator", max_new_tokens=40, budget=foretoken.FixedBudget(6), **options)
    assert drafted.tokens == plain.tokens and drafted.stats.drafted > 40


def test_heads_in_the_models_folder_are_found_and_can_be_turned_off(model_folder):
    lm = foretoken.load(str(model_folder), background=None, drafter="speculator")
    assert lm.generate("abc", max_new_tokens=20).stats.tokens == 20
    for none in (None, "none"):
        with pytest.raises(ForetokenError, match="there are none for this model"):
            foretoken.load(str(model_folder), background=None, drafter="speculator", speculator=none)


def test_heads_are_read_once_for_each_place_that_the_model_is_in(tmp_path, monkeypatch):
    places, folder = [], saved(tmp_path)
    monkeypatch.setattr(speculator, "ready", lambda module, *place: places.append(place) or ready(module, *place))
    model = copy.deepcopy(tiny_model("llama"))
    for dtype in (torch.float32, torch.float32, torch.bfloat16, torch.float32):
        speculator.trained_heads(model.to(dtype), folder, Choice())
    assert places == [(torch.device("cpu"), torch.float32), (torch.device("cpu"), torch.bfloat16)]


def test_the_command_line_and_the_hook_take_them(model_folder, tmp_path, monkeypatch, capsys):
    folder = saved(tmp_path, "medusa")
    words = ["generate", "--model", model_folder, "--background", "none", "--max-new-tokens", "8"]
    words += ["--prompt", "abc", "--temperature", "0", "--drafter"]
    choices = (["none"], ["speculator"], ["speculator", "--speculator", folder])
    statuses, texts, _ = zip(*(call(monkeypatch, capsys, *words, *choice) for choice in choices), strict=True)
    assert set(statuses) == {0} and len(set(texts)) == 1
    model, ids = tiny_model("llama"), torch.tensor([[3, 1, 4]])
    options = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    given = {"drafter": "speculator", "speculator": folder}
    ours = model.generate(ids, custom_generate=foretoken.generate, **given, **options)
    assert torch.equal(ours, model.generate(ids, **options))


@pytest.mark.parametrize(
    ("speculator", "sentence"),
    [
        ("nowhere", "There is no speculator folder 'nowhere'"),
        (7, "The speculator is 7: give the folder"),
    ],
)
def test_what_is_no_speculator_is_refused_before_any_prompt(speculator, sentence):
    with pytest.raises(ForetokenError, match=sentence):
        LanguageModel(tiny_model("llama"), character_tokenizer(), background=None, speculator=speculator)


def test_heads_of_another_model_and_engines_without_any_are_refused(tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for folder in (saved(tmp_path / "narrow"), broken):
        if folder != broken:
            config = (folder / "config.json").read_text()
            (folder / "config.json").write_text(config.replace('"emb_dim": 32', '"emb_dim": 16'))
        with pytest.raises(ForetokenError, match=r"speculator .* cannot be loaded"):
            LanguageModel(tiny_model("llama"), character_tokenizer(), "speculator", background=None, speculator=folder)
    for load in (lambda: foretoken.load("toy", speculator="x"), lambda: LanguageModel(object(), speculator="x")):
        with pytest.raises(ForetokenError, match="of its own"):
            load()


def test_their_noise_and_temperature_are_the_choices_own():
    warpers = LogitsProcessorList([TopKLogitsWarper(5), TemperatureLogitsWarper(0.7)])
    choice = Choice(warpers, seed=11)
    assert temperature_of(choice) == 0.7 and temperature_of(Choice(warpers)) == 0.0
    assert temperature_of(Choice(None, 1)) == 1.0
    said = torch_heads(tiny_model("llama"), "mlp", choice).start(torch.randn(32), 3, 20)
    assert said.noise[0].tolist() == pytest.approx([gumbel(11, 20, int(token)) for token in said.tokens[0]])
