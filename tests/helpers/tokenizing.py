"""Tokenizers built in memory: one for the models of the tests, and one of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from helpers.shapes import VOCAB

# Bytes of a two-byte character are pieces of their own, so that text must wait for the second.
PIECES = [*"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXY", "Ġ", ",", ";", ":", ".", "Ã", "©", "¤", "!", "?"]


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, but for a few that are two bytes."""
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    assert len(vocabulary) == VOCAB
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES_WITH_MARKED_SPACES = ["▁", "h", "i", "▁hi", "e", "é", "日", "\N{REPLACEMENT CHARACTER}", "▁▁", ".", "▁.", "n"]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """As GPT-2, Qwen and Llama 3 have it: every token is some bytes; the merged ones end inside characters, too."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, "Ġhi", "hi", "Ã©", "Ġï¿", "ðŁĺ"]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_turns(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def byte_fallback_tokenizer(*last: decoders.Decoder) -> PreTrainedTokenizerFast:
    """As Gemma has it: marked spaces, and a token for each byte of a character outside the vocabulary.

    Args:
        *last: Further steps of decoding, such as Llama 2's ``Strip`` of the first space.
    """
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *BYTE_TOKENS, *PIECES_WITH_MARKED_SPACES])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    tokenizer.decoder = decoders.Sequence(steps)
    return _with_turns(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))


def words_tokenizer(model: models.Model, decoder: decoders.Decoder | None) -> PreTrainedTokenizerFast:
    """Tokens that are words or parts of words."""
    tokenizer = Tokenizer(model)
    if decoder is not None:
        tokenizer.decoder = decoder
    return _with_turns(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


class PythonTokenizer(PreTrainedTokenizer):
    """A slow tokenizer: its own code makes the text."""

    def __init__(self, pieces: Sequence[str], join: Callable[[list[str]], str]) -> None:
        self.pieces, self.join = list(pieces), join
        super().__init__(additional_special_tokens=["<|turn|>"])

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def get_vocab(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces)} | self.added_tokens_encoder

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.index(token) if token in self.pieces else 0

    def _convert_id_to_token(self, index: int) -> Any:  # None for an unknown one
        return self.pieces[index] if index < len(self.pieces) else None

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.join(tokens)


def _bytes_joined(tokens: list[str]) -> str:
    return bytes(BYTE_TOKENS.index(token) for token in tokens if token in BYTE_TOKENS).decode(errors="replace")


def cleaning_up(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer set to take out the spaces before a full stop and the like, as BERT's are."""
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    return tokenizer


def _with_turns(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    return tokenizer


def tokenizers_of_every_kind() -> dict[str, PreTrainedTokenizerBase]:
    """One small tokenizer for each way in which tokens become text."""
    word_parts = {w: i for i, w in enumerate(["[UNK]", "hi", "##s", "##é", "the", ".", "n't", "do", "##'t", "!"])}
    scores = [("<unk>", -9.0), *((piece, -1.0 - i) for i, piece in enumerate(PIECES_WITH_MARKED_SPACES))]
    words = {word: i for i, word in enumerate(["<unk>", "a", "hello", ".", "日"])}
    letters = {letter: i for i, letter in enumerate("abcdefghij .é")}
    shortened = {letter: i for i, letter in enumerate(" 'nstmvre.?!,")}
    endings = {piece: i for i, piece in enumerate(["h", "i</w>", "i", "hi</w>", ".</w>"])}
    return {
        "byte-level": byte_level_tokenizer(),
        "byte-fallback": byte_fallback_tokenizer(),
        "byte-fallback, first space stripped": byte_fallback_tokenizer(decoders.Strip(" ", 1, 0)),
        "byte-fallback, replaced as a whole": byte_fallback_tokenizer(decoders.Replace("  ", "+")),
        "WordPiece": words_tokenizer(models.WordPiece(word_parts, unk_token="[UNK]"), decoders.WordPiece()),
        "Unigram": words_tokenizer(models.Unigram(scores, 0, False), decoders.Metaspace()),
        "words": words_tokenizer(models.WordLevel(words, unk_token="<unk>"), None),
        "characters": words_tokenizer(models.BPE(letters, []), decoders.Fuse()),
        "marked ends": words_tokenizer(models.BPE(endings, [], end_of_word_suffix="</w>"), decoders.BPEDecoder()),
        "spaces joined": words_tokenizer(
            models.BPE(letters, []), decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex(" +"), "_")])
        ),
        "words, cleaned up": cleaning_up(words_tokenizer(models.WordLevel(words, unk_token="<unk>"), None)),
        "word parts, cleaned up": cleaning_up(
            words_tokenizer(models.WordPiece(word_parts, unk_token="[UNK]"), decoders.WordPiece())
        ),
        "characters, cleaned up": cleaning_up(words_tokenizer(models.BPE(shortened, []), decoders.Fuse())),
        "Python, cleaned up": cleaning_up(PythonTokenizer(["<unk>", "hello", ".", "'s", "n't", "'", "?"], " ".join)),
        "Python, words": PythonTokenizer(["<unk>", "hello", "a", "."], " ".join),
        "Python, marked joints": PythonTokenizer(["hel@@", "lo", "a", "x@@"], lambda t: " ".join(t).replace("@@ ", "")),
        "Python, bytes": PythonTokenizer(BYTE_TOKENS, _bytes_joined),
    }
