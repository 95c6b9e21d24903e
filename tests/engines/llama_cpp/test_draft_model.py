"""The n-gram core behind llama-cpp-python's own Llama: it drafts what the text repeats, and knows the room."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from foretoken import ForetokenError
from foretoken.engines.llama_cpp.draft_model import NgramDraftModel
from helpers.gguf_files import gguf_file

TEXT = [5, 6, 7, 8, 9, 10, 11, 12]


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.intc)


def test_what_the_text_repeats_is_drafted_and_answers_are_remembered():
    draft = NgramDraftModel(num_tokens=4)
    assert draft(ids(1, 2, 3)).size == 0
    assert draft(ids(1, 2, 3, *TEXT, 1, *TEXT, 1, *TEXT[:4])).tolist()[:2] == [9, 10]
    assert draft(ids(30, 31, 32)).size == 0, "another prompt, and nothing is known after it"
    found = draft(ids(30, 31, 32, *TEXT[:5]))
    assert found.dtype == np.intc and found.tolist()[:1] == [10]
    with pytest.raises(ForetokenError, match="num_tokens is 0"):
        NgramDraftModel(num_tokens=0)


def test_no_draft_goes_beyond_the_room_for_logits_and_a_text_beyond_it_is_refused():
    text = [*TEXT * 3]
    draft = NgramDraftModel(n_batch=len(text) + 2, num_tokens=8)
    assert 1 <= draft(ids(*text)).size <= 2
    assert draft(ids(*text, 5, 6)).size == 0
    with pytest.raises(ForetokenError, match=r"A text of 27 tokens .*logits_all=True"):
        draft(ids(*text, 5, 6, 7))
    assert NgramDraftModel(n_batch=None)(ids(*text * 30)).size > 0


@pytest.mark.llama_cpp
@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs llama-cpp-python")
def test_greedy_text_of_llama_stays_and_takes_fewer_forwards():
    from llama_cpp import Llama

    how = {"model_path": str(gguf_file("q8_0")), "n_ctx": 400, "n_batch": 400, "n_threads": 1, "verbose": False}
    prompt = "x = [1, 2, 3, 1, 2, 3, 1, 2"
    plain = Llama(**how).create_completion(prompt, max_tokens=60, temperature=0)
    draft = NgramDraftModel(n_batch=400)
    drafted = Llama(**how, draft_model=draft)
    forwards = []
    evaluate = drafted.eval
    drafted.eval = lambda tokens: forwards.append(len(tokens)) or evaluate(tokens)  # type: ignore[method-assign]
    answer = drafted.create_completion(prompt, max_tokens=60, temperature=0)
    assert answer["choices"][0]["text"] == plain["choices"][0]["text"]
    assert len(forwards) < 50
    again = len(forwards)
    drafted.create_completion(prompt, max_tokens=60, temperature=0)
    assert len(forwards) - again < again, "the answer is remembered"
