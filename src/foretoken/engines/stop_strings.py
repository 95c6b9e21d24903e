"""Stop strings: an answer ends where one first appears in its text."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from foretoken.core.errors import RequestError
from foretoken.engines.base import Detokenizer, Tokens
from foretoken.texts import is_text


class StopStrings:
    """A reason to stop, asked after every token of an answer.

    The text is the answer's, as ``Detokenizer`` gives it: what the prompt says does not count, a character counts once
    it is whole, and a special token has no text. A string that names a special token, such as ``<|im_end|>``, is also
    looked for in the text that shows them.

    Args:
        strings: What to look for; no string is empty.
        tokens: The model's tokens.
        prompt: Token ids of what comes before the answer.
        others: Any other reason to stop.
    """

    def __init__(
        self,
        strings: Sequence[str],
        tokens: Tokens,
        prompt: Sequence[int],
        others: Callable[[Sequence[int]], bool] | None = None,
    ) -> None:
        self._strings, self._tokens, self._prompt, self._others = strings, tokens, list(prompt), others
        self._special = [string for string in strings if any(token in string for token in tokens.special_tokens)]
        self._num_read, self._searches = len(self._prompt), self._new_searches()

    def __call__(self, context: Sequence[int]) -> bool:
        """Whether the answer ends with the last token of ``context``, the prompt and the answer so far."""
        if len(context) <= self._num_read:
            self._num_read, self._searches = len(self._prompt), self._new_searches()  # another answer to the prompt
        new = context[self._num_read :]
        self._num_read = len(context)
        found = [search.push(token) for token in new for search in self._searches]
        return any(found) or (self._others is not None and self._others(context))

    def _new_searches(self) -> list[_Search]:
        searches = [_Search(self._strings, self._tokens.detokenizer(self._prompt))]
        if self._special:
            shown = self._tokens.detokenizer(self._prompt, skip_special_tokens=False)
            searches.append(_Search(self._special, shown))
        return searches


class _Search:
    """Looks for strings in a text that comes token by token."""

    def __init__(self, strings: Sequence[str], detokenizer: Detokenizer) -> None:
        self._strings, self._detokenizer = strings, detokenizer
        self._num_kept = max(map(len, strings)) - 1  # a string that is not whole yet begins in the last so many
        self._last = ""

    def push(self, token: int) -> bool:
        """Whether the text up to this token, and not up to the one before, holds one of the strings."""
        text = self._last + self._detokenizer.push(token)
        self._last = text[max(len(text) - self._num_kept, 0) :]
        text += self._detokenizer.pending
        return any(string in text for string in self._strings)


def read_stop_strings(name: str, given: Any) -> list[str]:
    """The strings of an argument or a config field: none, one, or several.

    Raises:
        ForetokenError: If one is no text or empty.
    """
    if given is None:
        return []
    if isinstance(given, bytes | Mapping) or not isinstance(given, Collection):
        raise RequestError(f"{name} is {reprlib.repr(given)}: give a string or a list of strings.")
    strings = [given] if isinstance(given, str) else list(given)
    for string in strings:
        if not is_text(string):
            raise RequestError(f"{name} holds {reprlib.repr(string)}, which is no text: give each as a string.")
        if not string:
            raise RequestError("A stop string is empty: give at least one character, or no stop string.")
    return strings
