"""Text token by token: joined, it is what ``tokenizer.decode`` gives for the whole."""

from __future__ import annotations

import random
from itertools import takewhile

import pytest
from tokenizers import decoders

from foretoken.engines.transformers.detokenize import Detokenizer
from helpers.tokenizing import byte_fallback_tokenizer, byte_level_tokenizer, tokenizers_of_every_kind

TOKENIZERS = tokenizers_of_every_kind()
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def decode(tokenizer, tokens, skip_special_tokens=True):
    return tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)


def added_text(tokenizer, prompt, answer, **how):
    """What decoding everything shows after what decoding the prompt shows."""
    before, whole = decode(tokenizer, prompt, **how), decode(tokenizer, prompt + answer, **how)
    return whole[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False))) :]


def pieces(tokenizer, prompt, answer, **how):
    detokenizer = Detokenizer(tokenizer, prompt, **how)
    return [*map(detokenizer.push, answer), detokenizer.flush()]


def token_of_byte(tokenizer, byte):
    """The token that is this byte alone, in a byte-fallback tokenizer or a byte-level one."""
    token = tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>")
    return token or next(i for i in range(256) if tokenizer.convert_ids_to_tokens(i) == BYTE_LEVEL_SPELLING[byte])


# GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from 256 on, in order.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTE_LEVEL_SPELLING = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(OTHERS)}


@pytest.mark.parametrize("skip_special_tokens", [True, False])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pieces_make_up_the_text_of_the_whole(kind, skip_special_tokens):
    """For any tokens: bytes that are no text, special tokens, and ids beyond the vocabulary."""
    tokenizer, draw, how = TOKENIZERS[kind], random.Random(kind), {"skip_special_tokens": skip_special_tokens}
    bytes_alone = range(1, 257) if kind.startswith("byte-fallback") else range(min(256, len(tokenizer)))
    for length in [3, 8, 20, 20] * (12 if kind.startswith("Python") else 75) + [200]:
        beyond = 0 if kind.startswith("Python") else 2  # decode itself crashes there
        kinds_of_tokens = [range(len(tokenizer) + beyond), bytes_alone]
        tokens = [draw.choice(draw.choice(kinds_of_tokens)) for _ in range(draw.randrange(9) + length)]
        prompt, answer = tokens[:-length], tokens[-length:]
        want = added_text(tokenizer, prompt, answer, **how)
        assert "".join(pieces(tokenizer, prompt, answer, **how)) == want, (prompt, answer)


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), byte_fallback_tokenizer(decoders.Strip(" ", 1, 0))])
@pytest.mark.parametrize(
    "text", ["\U0001f600\U0001f600", "\U0001f469\u200d\U0001f4bb", "日本語 日本語", f"a{REPLACEMENT}b"]
)
def test_text_comes_back(tokenizer, text):
    """Also a character of the text itself that stands for what is no text."""
    start = tokenizer("hi", add_special_tokens=False)["input_ids"]
    tokens = tokenizer("hi" + text, add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, start, tokens[len(start) :])) == text


def test_half_a_character_waits_for_the_rest():
    tokenizer = byte_level_tokenizer()
    detokenizer = Detokenizer(tokenizer, [])
    first, second = (token_of_byte(tokenizer, byte) for byte in "é".encode())
    assert detokenizer.push(first) == ""
    assert detokenizer.push(second) == "é"
    assert detokenizer.push(first) == "" and detokenizer.flush() == REPLACEMENT


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), byte_fallback_tokenizer()])
def test_a_character_that_the_prompt_begins_belongs_to_the_answer(tokenizer):
    first, second = (token_of_byte(tokenizer, byte) for byte in "é".encode())
    assert "".join(pieces(tokenizer, [tokenizer.convert_tokens_to_ids("h"), first], [second])) == "é"


@pytest.mark.parametrize("byte", [0x80, 0xE2, 0xF0, 0xFF])
@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), byte_fallback_tokenizer(), TOKENIZERS["Python, bytes"]])
def test_bytes_that_never_become_a_character_do_not_wait(tokenizer, byte):
    """UTF-8 has no character of more than four bytes."""
    token = byte if tokenizer is TOKENIZERS["Python, bytes"] else token_of_byte(tokenizer, byte)
    detokenizer = Detokenizer(tokenizer, [])
    given = "".join(detokenizer.push(token) for _ in range(4))
    assert given
    assert given + "".join(detokenizer.push(token) for _ in range(20)) == REPLACEMENT * (24 - len(detokenizer.flush()))


def test_a_real_replacement_character_is_given_with_its_last_byte():
    tokenizer = byte_level_tokenizer()
    detokenizer = Detokenizer(tokenizer, [])
    assert [detokenizer.push(token_of_byte(tokenizer, byte)) for byte in REPLACEMENT.encode()] == ["", "", REPLACEMENT]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("tokens", [[0x0B], [0xFF], [0xF0, 0x9F, 0x98], [1], [1, 2, 3], [-1]])
def test_what_is_decoded_grows_with_the_answer_and_no_faster(kind, tokens, monkeypatch):
    """Counted in tokens, so that a long answer costs no more per token than a short one."""
    tokenizer, counted = TOKENIZERS[kind], 0
    answer = [token % len(tokenizer) for token in tokens] * (400 // len(tokens))

    def counting(ids, **options):
        nonlocal counted
        counted += len(ids)
        return type(tokenizer).decode(tokenizer, ids, **options)

    monkeypatch.setattr(tokenizer, "decode", counting)
    pieces(tokenizer, [], answer)
    assert counted <= 120 * len(answer)
