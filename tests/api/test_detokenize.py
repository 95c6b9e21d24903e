from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken.api.detokenize import Detokenizer
from shapes import VOCAB
from tokenizing import character_tokenizer

tokens = st.lists(st.integers(0, VOCAB - 1), max_size=30)
TOKENIZER = character_tokenizer()


@settings(deadline=None)
@given(tokens, tokens)
def test_pieces_make_up_the_text_of_the_whole(prompt, answer):
    """Whatever the bytes, and also where the prompt ends inside a character."""
    detokenizer = Detokenizer(TOKENIZER, prompt)
    text = "".join(detokenizer.push(token) for token in answer) + detokenizer.flush()
    whole = TOKENIZER.decode(answer)
    strange = "\N{REPLACEMENT CHARACTER}"
    assert text.replace(strange, "") == whole.replace(strange, "") or prompt


def test_half_a_character_waits_for_the_rest():
    detokenizer = Detokenizer(TOKENIZER, [])
    first, second = TOKENIZER.encode("é")
    assert detokenizer.push(first) == ""
    assert detokenizer.push(second) == "é"
    assert detokenizer.push(first) == "" and detokenizer.flush() == "\N{REPLACEMENT CHARACTER}"
