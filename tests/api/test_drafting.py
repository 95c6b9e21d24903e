"""Drafters by name, each with what it needs, and a sentence where it lacks it."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from foretoken import AdaptiveBudget, FixedBudget, ForetokenError, LanguageModel
from foretoken.api.drafting import Situation
from foretoken.drafters import DRAFTERS, LookaheadDrafter, NgramMixer, RecycleDrafter, SharedNgrams
from foretoken.engines.transformers.target import TransformersTarget
from helpers.shapes import LLAMA, SMALL, VOCAB, tiny_model
from helpers.tokenizing import character_tokenizer


def situation(shape: str = "llama", **given) -> Situation:
    return Situation(TransformersTarget(tiny_model(shape)), SharedNgrams, **given)


def test_what_pays_is_the_budget_of_all_that_know_their_chances():
    here = situation(draft_model=tiny_model("qwen2"))
    for name in DRAFTERS:
        drafter, budget = here.drafting(name)
        assert drafter is not None
        assert (budget is here.memory.budget) == (name not in ("anpd", "prompt-lookup"))
    assert here.drafting("none") == (None, None)
    assert here.drafting(None) == (None, None)
    mine, fixed = RecycleDrafter(), FixedBudget(3)
    assert here.drafting(mine) == (mine, None), "nobody knows what a drafter of one's own says of its chances"
    assert here.drafting("mixed", fixed)[1] is fixed


def test_only_mixed_recycles_and_only_mixed_and_ngram_share_the_memory():
    memory = SharedNgrams()
    here = Situation(TransformersTarget(tiny_model("llama")), lambda: memory, [[1, 2, 3]])
    for name in ("mixed", "ngram"):
        drafter, _ = here.drafting(name)
        assert isinstance(drafter, NgramMixer) and drafter.memory is memory and drafter.references == [[1, 2, 3]]
        assert drafter.recycle == (name == "mixed")


def test_a_window_is_as_large_as_its_rows_are_cheap():
    windows = []
    for seconds_of_72_rows in (1.0, 20.0):
        here = situation()
        here.memory.budget = AdaptiveBudget(costs={1: 1.0, 72: seconds_of_72_rows})
        drafter, _ = here.drafting("lookahead")
        assert isinstance(drafter, LookaheadDrafter)
        windows.append(drafter.shape.window)
    assert windows[0] == 15 and windows[1] == 0


@pytest.mark.parametrize("length", [2, 3, 8, 16])
def test_what_rows_cost_is_measured_within_a_short_context(length):
    """A model with a table of positions has none beyond it."""
    config = GPT2Config(**SMALL, n_embd=32, n_layer=1, n_head=4, n_positions=length)
    model = AutoModelForCausalLM.from_config(config).eval()
    drafter, _ = Situation(TransformersTarget(model), SharedNgrams).drafting("lookahead")
    assert isinstance(drafter, LookaheadDrafter)


def test_what_rows_cost_is_measured_once_for_a_model_before_a_window_is_chosen():
    """Apart from any request, so that it shows nobody what another one asked."""
    model = tiny_model("llama")
    first, second = (Situation(TransformersTarget(model), SharedNgrams) for _ in range(2))
    first.drafting("mixed")
    assert first.memory.budget.costs.most_rows == 0, "others learn it as they go"
    first.drafting("lookahead")
    measured = first.memory.budget.costs.as_dict()
    assert sorted(measured) == [1, 8, 32, 72]
    second.drafting("lookahead")
    first.drafting("lookahead")
    assert first.memory.budget.costs.as_dict() == second.memory.budget.costs.as_dict() == measured


def test_a_drafter_of_ones_own_that_knows_its_chances_brings_its_own_budget():
    """So that who drafts for one caller only learns from nobody else."""
    mine, here = NgramMixer(), situation()
    assert here.drafting(mine) == (mine, mine.memory.budget)
    assert here.memory.budget is not mine.memory.budget


class NoTrees(TransformersTarget):
    """As a model whose attention takes no mask of ours."""

    supports_trees = property(lambda self: False, lambda self, value: None)  # type: ignore[assignment]


def test_without_trees_lookahead_is_refused_and_the_others_draft_chains():
    here = Situation(NoTrees(tiny_model("llama")), SharedNgrams, draft_model=tiny_model("qwen2"))
    with pytest.raises(ForetokenError, match=r"mixed, ngram, anpd, .* which draft chains here"):
        here.drafting("lookahead")
    for name in DRAFTERS:
        if name != "lookahead":
            drafter = here.drafting(name)[0]
            assert drafter is not None and not getattr(drafter, "trees", False)


def test_a_draft_model_of_one_family_may_have_another_padding():
    larger = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA | {"vocab_size": VOCAB + 64}))
    lm = LanguageModel(larger, character_tokenizer(), "draft-model", draft_model=tiny_model("llama"))
    plain = lm.generate("abc", drafter="none", max_new_tokens=20)
    assert lm.generate("abc", max_new_tokens=20).tokens == plain.tokens


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"drafter": "draft-model"}, "name one with draft_model"),
        ({"drafter": "early-exit", "exit_layer": 0}, "choose from 1 to 1"),
        ({"drafter": "early-exit", "exit_layer": 2}, "choose from 1 to 1"),
        ({"draft_model": tiny_model("gpt2"), "drafter": "magic"}, "no drafter named 'magic'"),
    ],
)
def test_what_a_drafter_lacks_is_said_when_the_model_is_loaded(options, sentence):
    with pytest.raises(ForetokenError, match=sentence):
        LanguageModel(tiny_model("llama"), character_tokenizer(), **options)
