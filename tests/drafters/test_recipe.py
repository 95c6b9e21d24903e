"""Recipes: options are read, written and refused; what is made has what was asked for."""

from __future__ import annotations

import pickle
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from foretoken import ForetokenError
from foretoken.drafters import DRAFTERS, RECIPES, TEXT_DRAFTERS, AdaptiveNgram, Recipe, recipe_of
from foretoken.drafters.recipe import option_types, options_of, parse_recipe, summary

TEXTS = st.text(
    ',"=:\\ \n\r\0é漢' + string.ascii_letters, max_size=20
)  # not of all characters, whose tables take seconds
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(2, 12),
    float: st.floats(0, 10),
    bool: st.booleans(),
    type(None): st.none(),
    str: st.one_of(TEXTS, st.sampled_from(["best", "4x3x2x2", "[[0], [0, 0]]"])),
    Any: TEXTS,
}


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any recipe with any options that it takes."""
    recipe = RECIPES[draw(st.sampled_from(DRAFTERS))]
    types = option_types(recipe)
    values = {one.name: draw(st.one_of(*(VALUES[kind] for kind in types[one.name]))) for one in options_of(recipe)}
    try:
        return recipe(**values)
    except ForetokenError:  # such as a shortest n-gram above the longest
        reject()


@given(recipes())
def test_a_recipe_is_read_as_it_is_written(recipe):
    assert recipe_of(str(recipe)) == recipe == recipe_of(recipe)
    assert hash(recipe) == hash(recipe_of(str(recipe)))
    assert pickle.loads(pickle.dumps(recipe)) == recipe, "replay sends recipes to other processes"


@given(st.sampled_from(DRAFTERS), st.text(',"=:\n' + string.ascii_lowercase + string.digits))
def test_any_text_is_a_recipe_or_one_sentence(name, options):
    try:
        recipe = recipe_of(f"{name}:{options}")
    except ForetokenError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
    else:
        assert isinstance(recipe, RECIPES[name])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("magic", r"no drafter named 'magic': choose one of mixed, .*, early-exit,.* none\.$"),
        ("Mixed", "no drafter named 'Mixed'"),
        ("anpd:depth=3", r"'anpd' has no option 'depth': choose one of max_order\.$"),
        ("early-exit:4", r"'early-exit' has no option '4': choose one of layer, floor, trees\.$"),
        ("anpd:max_order", "write 'anpd:max_order=NUMBER'"),
        ("anpd:max_order=3,max_order=4", "does not say the option max_order once"),
        ("anpd:max_order=1", "max_order is 1: give a whole number from 2 on"),
        ("anpd:max_order=3.5", "max_order is '3.5': give a whole number from 2 on"),
        ("anpd:max_order=none", "max_order is 'none': give a whole number from 2 on"),
        ("mixed:floor=nan", "floor is nan: give a finite number"),
        ("mixed:floor=-1", "floor is -1.0: give a number from 0.0 on"),
        ("lookahead:text=maybe", "text is 'maybe': give true or false"),
        ("draft-model", r"'draft-model' needs the option model: write 'draft-model:model=NAME'\.$"),
        ('anpd:"max_order=3', "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_could_be(text, sentence):
    with pytest.raises(ForetokenError, match=sentence):
        recipe_of(text)


def test_a_number_that_an_object_brings_is_checked_like_one_of_a_text():
    with pytest.raises(ForetokenError, match="max_order is 1: give a whole number from 2 on"):
        RECIPES["anpd"](max_order=1)
    with pytest.raises(ForetokenError, match="trees is 1: give true or false"):
        RECIPES["early-exit"](trees=1)
    assert RECIPES["mixed"](floor=1) == recipe_of("mixed:floor=1.0")


def test_plain_decoding_is_no_recipe_and_a_drafter_of_ones_own_is_made_as_it_is():
    assert recipe_of(None) is recipe_of("none") is None
    mine = AdaptiveNgram()
    assert recipe_of(mine).make(None) is mine and not recipe_of(mine).remembers
    for wrong in (AdaptiveNgram, RECIPES["anpd"], 3, object()):
        with pytest.raises(ForetokenError, match="give a name, a recipe, an object that drafts, or None"):
            recipe_of(wrong)


def test_every_recipe_can_be_told_of_in_a_line():
    for name, recipe in RECIPES.items():
        assert recipe.name == name and "," not in name and ":" not in name
        assert summary(recipe).endswith(".") and len(summary(recipe)) < 100
        for option in options_of(recipe):
            assert f"        {option.name}: " in recipe.__doc__, "its docstring says what each option does"


def test_the_documentations_table_has_every_drafter_its_options_and_its_budget():
    text = (Path(__file__).parents[2] / "docs" / "which-drafter.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| [^|]* \|([^|]*)\| (adaptive|7 tokens) \|$", text, re.MULTILINE)
    told = {name: (re.findall("`([a-z_]+)`", options), budget) for name, options, budget in rows}
    assert told == {
        name: ([option.name for option in options_of(recipe)], "adaptive" if recipe.calibrated else "7 tokens")
        for name, recipe in RECIPES.items()
    }


def test_only_what_sees_tokens_alone_drafts_for_recorded_answers():
    assert {"ngram", "anpd", "prompt-lookup"} <= set(TEXT_DRAFTERS)
    assert not {"mixed", "recycle", "lookahead", "draft-model", "early-exit"} & set(TEXT_DRAFTERS)
    assert parse_recipe("ngram:floor=0.1", RECIPES).floor == 0.1
