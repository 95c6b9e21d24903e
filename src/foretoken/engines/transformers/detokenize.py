"""Text from tokens, one by one: joined, it is what the tokenizer's own ``decode`` gives for the whole."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CONTEXT = 32  # tokens decoded along with a new one, so that spaces and joined bytes come out as in the whole
LAG = 3  # after so many tokens a character that UTF-8 can still finish is finished

_BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}  # the alphabet of byte-level tokens
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")  # what a character outside the vocabulary is spelled with


class Detokenizer:
    """Gives the text of an answer as its tokens come.

    The pieces make up the text that the answer adds to its prompt: ``decode(prompt + answer)`` from where it parts from
    ``decode(prompt)``, cleaned up where the tokenizer is set to do so. So the space before a first word is there, and a
    character that begins in the prompt and ends in the answer belongs to the answer.

    A piece is given once no later token can change it. An unfinished character waits for its bytes, four at most. Bytes
    spelled as tokens of their own (``<0xE2>``) wait for the end of their run, because ``decode`` takes a run with one
    wrong byte for no text at all. Where the tokenizer's decoder is not one that we know, text waits until three more
    tokens have left it as it is. The cost of a token does not grow with the answer, so such a decoder is asked about
    the last 32 to 64 tokens only, as long as these alone have the text that they have in the whole.

    Args:
        tokenizer: The target's tokenizer.
        prompt: What comes before, as token ids.
        skip_special_tokens: Whether special tokens have no text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], *, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        steps = _decoder_steps(tokenizer)
        self._cleans_up = _cleans_up(tokenizer)
        self._is_local = steps is not None and _is_local(steps) and not self._cleans_up
        self._is_byte_level = steps is not None and "ByteLevel" in steps
        self._has_byte_tokens = steps is not None and "ByteFallback" in steps
        skipped = special_tokens(tokenizer) if skip_special_tokens else ()
        self._hidden = frozenset(token for token in skipped if self._decode([token]) == "")
        self._window = [token for token in prompt if self._is_visible(token)]  # the last tokens, decoded together
        self._limit = 2 * CONTEXT
        self._run = self._run_at_end(self._window)
        self._run.text = ""  # it is the prompt's
        self._given = text = self._decode(self._window)  # how much of the window's text is given or is the prompt's
        self._rest = ""  # what the window's text has beyond it
        self._shorten(text)

    @property
    def pending(self) -> str:
        """The text that is held back and would be given if the answer ended now, but for unfinished characters."""
        return self._rest + self._run.text

    def push(self, token: int) -> str:
        """The text that this token settles, maybe none."""
        if not self._is_visible(token):
            return ""
        byte = self._byte(token)
        if byte is None:
            self._run = _ByteRun()
        elif self._run.is_broken and self._is_local:
            return REPLACEMENT  # as every byte of such a run, so there is nothing to decode
        else:
            self._run.add(byte)
        self._window.append(token)
        if self._run.is_open:
            return ""
        text = self._decode(self._window)
        piece = self._give(self._settled(text))
        self._rest = "" if self._is_local else self._beyond(text.rstrip(REPLACEMENT))
        self._shorten(text)
        return piece

    def flush(self) -> str:
        """The text held back for what never came."""
        self._rest, self._run = "", _ByteRun()
        return self._give(self._decode(self._window))

    def spelled(self, token: int) -> bytes:
        """The bytes of one more token, which may be half a character's. It is pushed where they are not known."""
        byte = self._byte(token)
        if byte is not None:
            return bytes([byte])
        if self._is_byte_level and self._name(token) is not None:
            return self._bytes(token)
        return (self.push(token) + self.flush()).encode()

    def _settled(self, text: str) -> str:
        """The part of the window's text that no later token changes."""
        if not self._is_local:
            return _shared_start(text, self._decode(self._window[:-LAG]))
        is_unfinished = self._is_byte_level and text.endswith(REPLACEMENT) and self._ends_inside_character()
        return text[:-1] if is_unfinished else text

    def _ends_inside_character(self) -> bool:
        tail = b"".join(map(self._bytes, self._window[-LAG - 1 :]))[-LAG:]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(tail)
        return decoder.getstate()[0] != b""  # bytes that wait for more

    def _give(self, text: str) -> str:
        piece = self._beyond(text)
        if piece:
            self._given = text
        return piece

    def _beyond(self, text: str) -> str:
        return text[len(_shared_start(self._given, text)) :]

    def _shorten(self, text: str) -> None:
        """Forget the window's first tokens, if its last ones alone have the text that they have in the whole."""
        if len(self._window) <= self._limit or self._run.is_open or not text.startswith(self._given):
            return
        window = self._window[-CONTEXT:]
        shorter = self._decode(window)
        last = shorter[len(shorter) // 2 :]  # the first tokens of a text may lose a space
        num_left = len(text) - len(self._given)
        is_run_kept = self._run_at_end(window).is_broken == self._run.is_broken
        if last and text.endswith(last) and num_left <= len(last) and is_run_kept:
            self._window, self._given = window, shorter[: len(shorter) - num_left]
            self._limit = 2 * CONTEXT
        else:
            self._limit = 2 * len(self._window)  # tried again later, and seldom enough

    def _run_at_end(self, tokens: Sequence[int]) -> _ByteRun:
        values: list[int] = []
        for token in reversed(tokens):
            byte = self._byte(token)
            if byte is None:
                break
            values.append(byte)
        run = _ByteRun()
        for byte in reversed(values):
            run.add(byte)
        return run

    def _is_visible(self, token: int) -> bool:
        return token not in self._hidden and self._name(token) is not None

    def _byte(self, token: int) -> int | None:
        """The byte that a token spells, where the decoder takes such tokens for bytes."""
        found = _BYTE_TOKEN.fullmatch(self._name(token) or "") if self._has_byte_tokens else None
        return int(found[1], 16) if found else None

    def _bytes(self, token: int) -> bytes:
        """The bytes of a byte-level token; an added one is spelled as it is."""
        name = self._name(token) or ""
        return bytes(_BYTE_OF[c] for c in name) if all(c in _BYTE_OF for c in name) else name.encode()

    def _name(self, token: int) -> str | None:
        """The token as the vocabulary spells it; None where the model has more ids than the tokenizer."""
        return cast(str | None, self._tokenizer.convert_ids_to_tokens(token))

    def _decode(self, tokens: Sequence[int]) -> str:
        if not tokens:
            return ""  # some decoders of the tokenizers library crash on nothing
        how = {"skip_special_tokens": self._skip, "clean_up_tokenization_spaces": self._cleans_up}
        return str(self._tokenizer.decode(list(tokens), **how))


class _ByteRun:
    """Bytes in a row, each a token: open while they can be text, broken once they cannot."""

    def __init__(self) -> None:
        self.text = ""  # the characters that are whole
        self.is_open = self.is_broken = False
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def add(self, byte: int) -> None:
        if self.is_broken:
            return
        try:
            self.text += self._decoder.decode(bytes([byte]))
            self.is_open = True
        except UnicodeDecodeError:
            self.text = ""
            self.is_open, self.is_broken = False, True


def _shared_start(first: str, second: str) -> str:
    if second.startswith(first):
        return first
    return first[: next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(second))]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that ``decode`` skips under ``skip_special_tokens``, by id, with their text."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return {token: name for token, name in named if token is not None}  # some are named and have no id


def _cleans_up(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether ``decode`` removes spaces, such as one before a full stop, by default; for BPE only if forced."""
    if isinstance(tokenizer, PreTrainedTokenizerFast) and type(tokenizer.backend_tokenizer.model).__name__ == "BPE":
        return bool(
            tokenizer.clean_up_tokenization_spaces
            and tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
        )
    return bool(tokenizer.clean_up_tokenization_spaces)


def _decoder_steps(tokenizer: PreTrainedTokenizerBase) -> list[str] | None:
    """The kinds of a fast tokenizer's decoding steps, in order; None where the decoder is somebody's own code."""
    kind = type(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or (kind.decode, kind._decode) != (
        PreTrainedTokenizerFast.decode,
        PreTrainedTokenizerFast._decode,
    ):
        return None
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return []
    try:
        return _kinds(json.loads(decoder.__getstate__()))
    except Exception:  # tokenizers raises the bare class for a decoder written in Python
        return None


def _kinds(step: dict[str, Any]) -> list[str]:
    if step["type"] != "Sequence":
        return [step["type"]]
    return [kind for one in step["decoders"] for kind in _kinds(one)]


def _is_local(steps: list[str]) -> bool:
    """Whether a token's text is settled with the token, but for unfinished characters and open runs of bytes.

    Steps on single tokens come first, then one that joins them, then at most a strip of the ends.
    """
    joins = [i for i, kind in enumerate(steps) if kind in ("Fuse", "ByteLevel")]
    first = joins[0] if joins else len(steps)
    if first < len(steps) and steps[first] == "ByteLevel" and first > 0:
        return False
    return {*steps[:first]} <= {"Replace", "ByteFallback", "Metaspace", "WordPiece", "BPEDecoder", "Strip"} and {
        *steps[first + 1 :]
    } <= {"Fuse", "Strip"}
