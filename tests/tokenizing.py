"""A tokenizer built in memory: one token a character, but for a few that are two bytes."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shapes import VOCAB

# Bytes of a two-byte character are pieces of their own, so that text must wait for the second.
PIECES = [*"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXY", "Ġ", ",", ";", ":", ".", "Ã", "©", "¤", "!", "?"]


def character_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    assert len(vocabulary) == VOCAB
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
