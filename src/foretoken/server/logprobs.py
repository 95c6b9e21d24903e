"""How likely the tokens of an answer were, in OpenAI's two shapes.

The numbers are the model's own: of the softmax over its logits, before temperature, penalties or a grammar.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretoken.core.contracts import Scores, Step

LEAST = -9999.0  # what OpenAI says of a token that cannot be


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer.

    Args:
        spelled: The bytes that it stands for.
        logprob: How likely it was.
        start: Where its text begins in the answer's.
        top: The likeliest tokens in its place, best first, each with how likely it was.
    """

    spelled: bytes
    logprob: float
    start: int
    top: Sequence[tuple[bytes, float]]


class AnswerLogprobs:
    """The tokens of one answer. A token is told once some of its text is.

    So the token that ends an answer is not told, nor are those of a stop string.

    Args:
        spelled: Gives the bytes that a token stands for.
        num_top: How many of the likeliest tokens are told for each.
    """

    def __init__(self, spelled: Callable[[int], bytes], num_top: int) -> None:
        self._spelled, self._num_top = spelled, num_top
        self._length = self._given = 0  # characters, of all tokens and of what was told
        self._waiting: deque[TokenLogprob] = deque()

    def settled(self, step: Step, texts: Sequence[str], given: str) -> list[TokenLogprob]:
        """The tokens that can be told after a step.

        Args:
            step: Whose scores still hold.
            texts: What each of its tokens says.
            given: The text that is told now.
        """
        assert step.scores is not None
        for row, token, text in zip([0, *(node + 1 for node in step.path)], step.tokens, texts, strict=False):
            self._waiting.append(self._of(step.scores, row, token))
            self._length += len(text)
        self._given += len(given)
        told = []
        while self._waiting and self._waiting[0].start < self._given:
            told.append(self._waiting.popleft())
        return told

    def _of(self, scores: Scores, row: int, token: int) -> TokenLogprob:
        logprobs = np.maximum(np.asarray(scores.logprobs(row)), LEAST)
        num = min(self._num_top, len(logprobs))
        best = np.argpartition(-logprobs, num - 1)[:num] if num else np.empty(0, int)
        best = best[np.lexsort((best, -logprobs[best]))]
        top = [(self._spelled(other), float(logprobs[other])) for other in best.tolist()]
        return TokenLogprob(self._spelled(token), float(logprobs[token]), self._length, top)


def of_chat(told: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The field ``logprobs`` of a chat's choice."""
    content = [_one(one.spelled, one.logprob) | {"top_logprobs": [_one(*other) for other in one.top]} for one in told]
    return {"content": content, "refusal": None}


def of_completion(told: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The field ``logprobs`` of a completion's choice. The token itself is always among the likeliest."""
    return {
        "tokens": [_text(one.spelled) for one in told],
        "token_logprobs": [one.logprob for one in told],
        "top_logprobs": [
            {_text(spelled): logprob for spelled, logprob in (*one.top, (one.spelled, one.logprob))} for one in told
        ],
        "text_offset": [one.start for one in told],
    }


def _one(spelled: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(spelled), "logprob": logprob, "bytes": list(spelled)}


def _text(spelled: bytes) -> str:
    try:
        return spelled.decode()
    except UnicodeDecodeError:  # a part of a character
        return "".join(f"\\x{byte:02x}" for byte in spelled)
