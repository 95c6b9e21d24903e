"""Drafters at the door: which budget each gets, what it drafts from, and a sentence where it lacks something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

import foretoken
from foretoken import AdaptiveBudget, FixedBudget, ForetokenError, LanguageModel
from foretoken.core.contracts import needs_of
from foretoken.drafters import (
    DRAFTERS,
    RECIPES,
    Anpd,
    DraftModel,
    EarlyExit,
    Mixed,
    Ngram,
    NgramMixer,
    Parts,
    PromptLookup,
    RecycleDrafter,
    SharedNgrams,
    recipe_of,
)
from foretoken.engines import base
from foretoken.engines.toy import ToyHeads, ToyTarget
from foretoken.engines.transformers.target import TransformersTarget
from helpers.drafting import WITHOUT_HEADS, named
from helpers.shapes import LLAMA, VOCAB, tiny_model
from helpers.tokenizing import character_tokenizer


def model(**options) -> LanguageModel:
    return LanguageModel(tiny_model("llama"), character_tokenizer(), **{"background": None} | options)


def test_what_pays_is_the_budget_of_all_that_know_their_chances(monkeypatch):
    lm, budgets = model(), []
    monkeypatch.setattr(base, "decode", lambda *args, budget, **rest: budgets.append(budget) or iter(()))

    def budget_of(drafter: object, **options: object) -> object:
        lm.generate("abc", drafter=drafter, **options)
        return budgets.pop()

    for name in WITHOUT_HEADS:
        known = RECIPES[name].calibrated
        assert isinstance(budget_of(named(name, tiny_model("qwen2"))), AdaptiveBudget if known else type(None))
    assert Mixed.calibrated and not Anpd.calibrated and not PromptLookup.calibrated
    assert budget_of("none") is budget_of(None) is None
    assert budget_of(RecycleDrafter()) is None, "nobody knows what a drafter of one's own says of its chances"
    assert isinstance(budget_of(NgramMixer()), AdaptiveBudget), "this one says that they can be counted on"
    fixed = FixedBudget(3)
    assert budget_of("mixed", budget=fixed) is budget_of("anpd", budget=fixed) is fixed


def test_only_mixed_recycles_and_only_mixed_and_ngram_draft_from_what_is_remembered():
    shared, asked = SharedNgrams(), []
    parts = Parts(TransformersTarget(tiny_model("llama")), lambda: asked.append(1) or shared, references=[[1, 2, 3]])
    for recipe in (Mixed(floor=0.5), Ngram(rate=0.2)):
        drafter = recipe.make(parts)
        assert drafter.memory is shared and drafter.references == [[1, 2, 3]]
        assert drafter.recycle == (recipe.name == "mixed")
    assert drafter.rate == 0.2
    asked.clear()
    for name in ("anpd", "prompt-lookup", "recycle", "lookahead"):
        recipe_of(name).make(parts)
    assert not asked, "what is remembered need not even be loaded for others"


def test_a_recipe_says_what_its_drafter_needs():
    target = TransformersTarget(tiny_model("llama"))
    parts = Parts(
        target,
        draft_target=lambda model: TransformersTarget(model),
        exit_target=lambda layer: target,
        heads=lambda: ToyHeads(ToyTarget(VOCAB)),
    )
    for name in DRAFTERS:
        recipe = recipe_of(named(name, tiny_model("qwen2")))
        assert recipe is not None and needs_of(recipe.make(parts)) == recipe.needs


class Blind(ToyTarget):
    """As a hosted model, which shows the tokens that it chose and nothing else."""

    provides = frozenset()


@pytest.mark.parametrize("name", DRAFTERS)
def test_what_a_target_does_not_show_is_said_before_any_prompt(name):
    recipe = RECIPES[name]
    if recipe.needs:
        with pytest.raises(ForetokenError, match=f"The drafter '{name}' needs the .* of a row"):
            recipe().check(Parts(Blind()))
    elif not recipe.runs_model:
        recipe().check(Parts(Blind()))


class NoTrees(TransformersTarget):
    """As a model whose attention takes no mask of ours."""

    supports_trees = property(lambda self: False, lambda self, value: None)  # type: ignore[assignment]


def test_without_trees_lookahead_is_refused_and_the_others_draft_chains():
    target = NoTrees(tiny_model("llama"))
    parts = Parts(
        target,
        draft_target=lambda model: TransformersTarget(model),
        exit_target=lambda layer: target,
        heads=lambda: ToyHeads(ToyTarget(VOCAB)),
    )
    for name in DRAFTERS:
        recipe = recipe_of(named(name, tiny_model("qwen2")))
        if name == "lookahead":
            for refused in (recipe.check, recipe.make):
                with pytest.raises(ForetokenError, match="no draft trees here, and the drafter 'lookahead' needs them"):
                    refused(parts)
        else:
            recipe.check(parts)
            assert not getattr(recipe.make(parts), "trees", False)


def test_an_engine_without_a_second_model_says_so():
    for drafter in ("draft-model:model=tiny", "early-exit"):
        with pytest.raises(ForetokenError, match=f"'{drafter.partition(':')[0]}' runs .* this engine"):
            recipe_of(drafter).check(Parts(ToyTarget()))


def test_a_model_without_trained_heads_says_so():
    with pytest.raises(ForetokenError, match="'speculator' needs trained heads, and there are none for this model"):
        model(drafter="speculator")


def test_a_draft_model_of_one_family_may_have_another_padding():
    larger = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA | {"vocab_size": VOCAB + 64}))
    lm = LanguageModel(larger, character_tokenizer(), DraftModel(tiny_model("llama")))
    plain = lm.generate("abc", drafter="none", max_new_tokens=20)
    assert lm.generate("abc", max_new_tokens=20).tokens == plain.tokens


def test_a_draft_model_that_is_named_is_loaded_once_and_when_the_model_is(model_folder, tmp_path, monkeypatch):
    lm = foretoken.load(str(model_folder), drafter=f"draft-model:model={model_folder}", background=None, history=False)
    plain = lm.generate("abc", drafter="none", max_new_tokens=20)
    monkeypatch.setattr("foretoken.engines.transformers.helpers.load_draft_model", None)
    assert lm.generate("abc", max_new_tokens=20).tokens == plain.tokens
    monkeypatch.undo()
    with pytest.raises(ForetokenError, match="nowhere"):
        foretoken.load(str(model_folder), drafter=f"draft-model:model={tmp_path}/nowhere", history=False)


@pytest.mark.parametrize(
    ("drafter", "sentence"),
    [
        ("draft-model", r"write 'draft-model:model=NAME'\.$"),
        ("early-exit:layer=0", "layer is 0: give a whole number from 1 on"),
        (EarlyExit(layer=2), "choose from 1 to 1"),
        (DraftModel(AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA | {"vocab_size": 5}))), "has 5 tokens"),
        (DraftModel(7), "give the name of a model"),
        ("magic", "no drafter named 'magic'"),
        (EarlyExit, "give a name, a recipe, an object that drafts, or None"),
    ],
)
def test_what_a_drafter_lacks_is_said_when_the_model_is_loaded(drafter, sentence):
    with pytest.raises(ForetokenError, match=sentence):
        model(drafter=drafter)


@pytest.mark.parametrize("drafter", ["anpd", "recycle", "none", None, RecycleDrafter()])
def test_what_a_drafter_does_not_draft_from_is_refused(drafter: Any):
    """It would be dropped without a word, and the caller would wonder why nothing is faster."""
    lm = model()
    with pytest.raises(ForetokenError, match=r"references is for the drafters mixed and ngram and .*, not for"):
        lm.generate("abc", drafter=drafter, references=["abcd"])
    with pytest.raises(ForetokenError, match=r"background is for the drafters mixed and ngram and .*, not for"):
        model(drafter=drafter, background="a folder")
    said: Sequence[int] = lm.generate("abc", drafter=drafter, references=[], max_new_tokens=4).tokens
    assert said == lm.generate("abc", drafter="ngram", references=["abcd"], max_new_tokens=4).tokens


def test_a_drafter_with_statistics_of_its_own_remembers_its_answers():
    """As it does beside ``custom_generate``; and nobody else is told."""
    lm, own = model(), NgramMixer()
    tokens = lm.generate("abc", max_new_tokens=12, drafter=own, namespace=None).tokens
    assert own.memory.answers.num_tokens == len(tokens) + 1, "with what separates it from the next"
    lm.generate("abc", max_new_tokens=12, drafter="ngram", namespace=None)
    assert own.memory.answers.num_tokens == len(tokens) + 1
