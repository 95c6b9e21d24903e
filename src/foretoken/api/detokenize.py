"""Text from tokens, one by one, without half characters."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

CONTEXT = 6  # tokens decoded along with a new one, so that spaces and joined bytes come out as in the whole


class Detokenizer:
    """Gives the text of each new token; bytes of an unfinished character wait for the rest.

    Args:
        tokenizer: The target's tokenizer.
        prompt: What comes before, so that a leading space survives.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.tokens = list(prompt[-CONTEXT:])
        self.num_read = len(self.tokens)  # tokens whose text has been given

    def push(self, token: int) -> str:
        """The text that this token completes, maybe none."""
        self.tokens.append(token)
        return self._unread(hold_back=True)

    def flush(self) -> str:
        """The text held back for bytes that never came."""
        return self._unread(hold_back=False)

    def _unread(self, hold_back: bool) -> str:
        start = max(self.num_read - CONTEXT, 0)
        before = self._decode(self.tokens[start : self.num_read])
        text = self._decode(self.tokens[start:])
        if len(text) <= len(before) or (hold_back and text.endswith("\N{REPLACEMENT CHARACTER}")):
            return ""
        self.num_read = len(self.tokens)
        return text[len(before) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)
