"""Stop strings as OpenAI gives answers: the text ends before the first one."""

from __future__ import annotations

from collections.abc import Sequence


class TextBeforeStop:
    """Passes text on up to the first stop string, and holds back what may be the beginning of one.

    Args:
        strings: What ends the text; none is empty.

    >>> text = TextBeforeStop(["END"])
    >>> text.push("in the E"), text.push("N"), text.push("!"), text.push("END?")
    ('in the ', '', 'EN!', '')
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self._ended = False

    def push(self, text: str) -> str:
        """The text that is settled once this one has come."""
        if self._ended or not self._strings:
            return "" if self._ended else text
        text = self._held + text
        places = [place for string in self._strings if (place := text.find(string)) >= 0]
        if places:
            self._held, self._ended = "", True
            return text[: min(places)]
        num_held = max(num_begun(text, string) for string in self._strings)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """The text that was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held


def num_begun(text: str, string: str) -> int:
    """How many characters at the end of a text may be the first ones of a string."""
    longest = min(len(string) - 1, len(text))
    return next((num for num in range(longest, 0, -1) if text.endswith(string[:num])), 0)
