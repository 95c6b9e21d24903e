"""Text of tokens that stand for bytes, as their tokens come."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable


class BytesDetokenizer:
    r"""Joins the bytes of tokens to UTF-8 text; half a character waits for its other half.

    Args:
        piece: Gives the bytes that a token stands for.

    >>> pieces = [b"caf", b"\xc3", b"\xa9"]
    >>> detokenizer = BytesDetokenizer(pieces.__getitem__)
    >>> "|".join(detokenizer.push(token) for token in range(3))
    'caf||é'
    """

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece, self._decoder = piece, getincrementaldecoder("utf-8")("replace")

    @property
    def pending(self) -> str:
        """The text that would be given if the answer ended now."""
        return self._decoder.getstate()[0].decode("utf-8", "replace")

    def push(self, token: int) -> str:
        """The text that this token settles, maybe none."""
        return self._decoder.decode(self._piece(token))

    def flush(self) -> str:
        """The text that was held back, at the end of the answer."""
        return self._decoder.decode(b"", final=True)
