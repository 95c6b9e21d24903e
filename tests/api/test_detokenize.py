from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken.api.detokenize import Detokenizer
from shapes import VOCAB
from tokenizing import character_tokenizer

tokens = st.lists(st.integers(0, VOCAB - 1), max_size=30)
TOKENIZER = character_tokenizer()


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=30), tokens)
def test_pieces_make_up_the_text_of_the_whole(prompt, answer):
    """Whatever the bytes of the answer; a byte that never becomes a character may be shown or not."""
    detokenizer = Detokenizer(TOKENIZER, prompt)
    text = "".join(detokenizer.push(token) for token in answer) + detokenizer.flush()
    strange = "\N{REPLACEMENT CHARACTER}"
    assert text.replace(strange, "") == TOKENIZER.decode(answer).replace(strange, "")


def test_half_a_character_waits_for_the_rest():
    detokenizer = Detokenizer(TOKENIZER, [])
    first, second = TOKENIZER.encode("é")
    assert detokenizer.push(first) == ""
    assert detokenizer.push(second) == "é"
    assert detokenizer.push(first) == "" and detokenizer.flush() == "\N{REPLACEMENT CHARACTER}"
