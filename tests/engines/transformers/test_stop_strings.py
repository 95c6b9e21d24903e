"""Stop strings: an answer ends where one first stands in the text that the user gets."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from tokenizers import decoders
from transformers import GenerationConfig, StopStringCriteria

from foretoken import ForetokenError, LanguageModel
from foretoken.engines.stop_strings import StopStrings, read_stop_strings
from foretoken.engines.transformers.tokens import TransformersTokens
from helpers.shapes import tiny_model
from helpers.tokenizing import (
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    character_tokenizer,
    tokenizers_of_every_kind,
)

TOKENIZERS = tokenizers_of_every_kind()
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def end_of(tokenizer, strings, prompt, answer):
    """After how many tokens of the answer our rule ends it; None where it does not."""
    stop, context = StopStrings(strings, TransformersTokens(tokenizer), prompt), list(prompt)
    for num_tokens, token in enumerate(answer, start=1):
        context.append(token)
        if stop(context):
            return num_tokens
    return None


def end_of_theirs(tokenizer, strings, prompt, answer):
    criteria = StopStringCriteria(tokenizer, strings)
    ends = (n for n in range(1, len(answer) + 1) if criteria(torch.tensor([[*prompt, *answer[:n]]]), None).item())
    return next(ends, None)


def added_text(tokenizer, prompt, answer, skip_special_tokens=True):
    how = {"skip_special_tokens": skip_special_tokens}
    before, whole = tokenizer.decode(prompt, **how), tokenizer.decode([*prompt, *answer], **how)
    return whole[next((i for i, c in enumerate(before) if not whole[i:].startswith(c)), len(before)) :]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_answer_ends_with_the_token_that_completes_a_string(kind):
    """Counted by decoding the answer again after every token."""
    tokenizer, draw, num_stopped = TOKENIZERS[kind], random.Random(kind), 0
    ids = range(len(tokenizer))
    for _ in range(15 if kind.startswith("Python") else 60):
        prompt, answer = (
            [draw.choice(draw.choice([ids, ids[-12:]])) for _ in range(n)] for n in (draw.randrange(5), 24)
        )
        text, shown = (added_text(tokenizer, prompt, answer, skip) for skip in (True, False))
        starts = [(source, draw.randrange(len(source))) for source in (text, text, shown) if source]
        strings = [source[i : i + draw.randrange(1, 6)] for source, i in starts] + ["<|turn|>"] * draw.randrange(2)
        strings = [string for string in strings if REPLACEMENT not in string]
        if not strings:
            continue

        def ends(n, strings=strings, prompt=prompt, answer=answer):
            text, shown = (added_text(tokenizer, prompt, answer[:n], skip) for skip in (True, False))
            return any(string in text or ("<|turn|>" in string and string in shown) for string in strings)

        want = next((n for n in range(1, len(answer) + 1) if ends(n)), None)
        assert end_of(tokenizer, strings, prompt, answer) == want, (strings, prompt, answer)
        num_stopped += want is not None
    assert num_stopped >= 5


def test_the_answer_ends_where_transformers_ends_it():
    """Strings of whole characters that are no part of a special token's name, in answers without any."""
    for tokenizer in (byte_level_tokenizer(), byte_fallback_tokenizer(), TOKENIZERS["characters"]):
        draw, letters = random.Random(1), tokenizer.convert_tokens_to_ids(["h", "i", "e", "."])
        for _ in range(40):
            answer = draw.choices(letters, k=30)
            text = tokenizer.decode(answer)
            strings = [text[i : i + draw.randrange(1, 5)] for i in draw.sample(range(len(text)), 2)]
            prompt = tokenizer.convert_tokens_to_ids(["j"])  # in no string
            assert end_of(tokenizer, strings, prompt, answer) == end_of_theirs(tokenizer, strings, prompt, answer)


@pytest.mark.parametrize("strings", [["<|turn|>"], ["no", "<|turn|>"], ["i<|turn|>"]])
@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), byte_fallback_tokenizer()])
def test_a_special_token_ends_the_answer_though_the_text_skips_it(tokenizer, strings):
    answer = tokenizer.convert_tokens_to_ids(["h", "i", "<|turn|>", "h"])
    assert end_of(tokenizer, strings, answer[:1], answer) == end_of_theirs(tokenizer, strings, answer[:1], answer) == 3


def test_a_part_of_a_special_token_ends_nothing():
    """The user does not see it."""
    tokenizer = byte_level_tokenizer()
    answer = tokenizer.convert_tokens_to_ids(["h", "<|turn|>", "i"])
    assert end_of(tokenizer, ["|", "turn"], [0], answer) is None
    assert end_of(tokenizer, ["hi"], [0], answer) == 3


@pytest.mark.parametrize("first", ["▁hi", "▁"])
@pytest.mark.parametrize("steps", [[], [decoders.Strip(" ", 1, 0)]])
def test_a_space_at_the_very_beginning_of_an_answer_counts(first, steps):
    tokenizer = byte_fallback_tokenizer(*steps)
    prompt, answer = tokenizer.convert_tokens_to_ids(["h"]), tokenizer.convert_tokens_to_ids([first, "h", "▁hi"])
    assert end_of(tokenizer, [" "], prompt, answer) == 1
    assert end_of(tokenizer, [" h"], prompt, answer) == (1 if first == "▁hi" else 2)


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), byte_fallback_tokenizer()])
def test_a_character_of_several_tokens_counts_once_it_is_whole(tokenizer):
    prompt = tokenizer("h", add_special_tokens=False)["input_ids"]
    answer = tokenizer("h\U0001f600\U0001f600.", add_special_tokens=False)["input_ids"][len(prompt) :]
    strings = ["\U0001f600"]
    assert end_of(tokenizer, strings, prompt, answer) == end_of_theirs(tokenizer, strings, prompt, answer) == 4
    assert end_of(tokenizer, [REPLACEMENT], prompt, answer) is None


def test_what_the_prompt_says_does_not_count():
    tokenizer = byte_level_tokenizer()
    h, i, hi = tokenizer.convert_tokens_to_ids(["h", "i", "hi"])
    assert end_of(tokenizer, ["hi"], [hi, h], [i, h, h, i]) == 4  # "i" alone completes what the prompt began
    assert end_of(tokenizer, ["hi"], [h], [hi]) == 1


def test_a_string_may_begin_and_end_inside_tokens():
    tokenizer = byte_level_tokenizer()
    h, i, hi = tokenizer.convert_tokens_to_ids(["h", "i", "hi"])
    assert end_of(tokenizer, ["ih"], [i], [h, hi, hi, h]) == 3


def test_another_answer_to_the_same_prompt_is_read_from_its_beginning():
    tokenizer = byte_level_tokenizer()
    h, i = tokenizer.convert_tokens_to_ids(["h", "i"])
    stop = StopStrings(["hi"], TransformersTokens(tokenizer), [h])
    for _ in range(2):
        assert [stop([h, *answer]) for answer in ([i], [i, h], [i, h, i])] == [False, False, True]


def test_other_reasons_to_stop_are_asked_too():
    tokenizer = byte_level_tokenizer()
    h, i = tokenizer.convert_tokens_to_ids(["h", "i"])
    stop = StopStrings(["x"], TransformersTokens(tokenizer), [h], lambda context: len(context) == 3)
    assert [stop([h, i]), stop([h, i, i])] == [False, True]


@pytest.mark.parametrize(
    ("given", "strings"),
    [(None, []), ([], []), ((), []), ("ab", ["ab"]), (["a", "b"], ["a", "b"]), (("a",), ["a"])],
)
def test_one_string_or_several_or_none_may_be_given(given, strings):
    assert read_stop_strings("stop", given) == strings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "stop string is empty"),
        (["a", ""], "stop string is empty"),
        (["a", None], "stop holds None, which is no text"),
        ([3], "stop holds 3, which is no text"),
        ([b"a"], "stop holds b'a', which is no text"),
        (["\udcff"], "which is no text"),
        (3, "stop is 3: give a string or a list of strings"),
        (b"a", "stop is b'a': give a string"),
        ({"a": 1}, "stop is {'a': 1}: give a string"),
        (iter(["a"]), "stop is <list_.*: give a string"),
    ],
)
def test_what_is_no_stop_string_is_refused_with_a_sentence(given, said):
    with pytest.raises(ForetokenError, match=said):
        read_stop_strings("stop", given)


@pytest.fixture
def lm(monkeypatch) -> LanguageModel:
    model = tiny_model("llama")  # shared by all tests
    monkeypatch.setattr(model, "generation_config", copy.deepcopy(model.generation_config))
    return LanguageModel(model, character_tokenizer(), background=None)


def transformers_says(lm, **options):
    ids = torch.tensor([lm.encode("abc")])
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 60} | options
    return lm.model.generate(ids, tokenizer=lm.tokenizer, **options)[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("as_given", [str, lambda string: [string], lambda string: ["not in it", string]])
def test_stop_strings_of_a_config_end_the_answer(lm, as_given):
    """The model's own, also beside a config for the call that has none, and those of the call's config before it."""
    text = lm.generate("abc", max_new_tokens=60, temperature=0).text
    own, of_call = text[20:23], text[5:8]
    lm.model.generation_config.stop_strings = as_given(own)
    want = transformers_says(lm)
    assert len(want) < 60
    assert list(lm.generate("abc", max_new_tokens=60, temperature=0).tokens) == want
    config = GenerationConfig(do_sample=False, max_new_tokens=60, pad_token_id=0)
    assert list(lm.generate("abc", generation_config=config).tokens) == want
    config.stop_strings = as_given(of_call)
    want = transformers_says(lm, generation_config=config)
    result = lm.generate("abc", generation_config=config)
    assert (list(result.tokens), result.finish_reason) == (want, "stop")
    assert lm.generate("abc", generation_config=config, stop=text[2:4]).text == text[:4]
    assert config.stop_strings == as_given(of_call) and lm.model.generation_config.stop_strings == as_given(own)


def test_a_config_without_any_and_none_stop_nowhere(lm):
    lm.model.generation_config.stop_strings = []
    assert len(lm.generate("abc", max_new_tokens=60, temperature=0, stop=None).tokens) == 60


def test_a_config_that_holds_no_strings_is_refused_with_a_sentence(lm):
    lm.model.generation_config.stop_strings = [7]
    with pytest.raises(ForetokenError, match="stop_strings of the generation config holds 7"):
        lm.generate("abc")
