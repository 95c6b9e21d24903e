"""OpenAI's objects: a whole answer, and the chunks of one that streams. Ours beside them is ``foretoken``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from foretoken.core.stats import DecodeStats
from foretoken.server.answers import Finish, Part
from foretoken.server.logprobs import TokenLogprob, of_chat, of_completion
from foretoken.server.schema import Asked, ChatAsked


class Reply:
    """Makes the objects of one request as its parts come.

    Args:
        asked: The request.
        drafter: What drafts for it.
        fingerprint: Tells apart models whose seeds give other texts.
    """

    def __init__(self, asked: Asked, drafter: str, fingerprint: str) -> None:
        self._asked, self._drafter = asked, drafter
        self._is_chat = isinstance(asked, ChatAsked)
        kind = "chat.completion" if self._is_chat else "text_completion"
        self._chunk_kind = "chat.completion.chunk" if self._is_chat else kind
        self._frame = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": fingerprint,
        }
        self._num = (asked.n or 1) * len(asked.prompts)
        self._texts: list[list[str]] = [[] for _ in range(self._num)]
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(self._num)]
        self._finishes: list[Finish] = []
        self._seconds = self._saved = 0.0
        self._shows_usage = asked.stream_options is not None and asked.stream_options.include_usage

    def add(self, part: Part) -> None:
        """Take in a part."""
        self._texts[part.index].append(part.text)
        self._logprobs[part.index] += part.logprobs
        self._seconds += part.seconds
        self._saved += part.seconds_saved
        if part.finish is not None:
            self._finishes.append(part.finish)

    def whole(self) -> dict[str, Any]:
        """All answers, once they have ended."""
        choices = [
            {
                "index": index,
                **self._said("".join(texts)),
                "logprobs": self._likely(told),
                "finish_reason": finish.reason,
            }
            for index, (texts, told, finish) in enumerate(zip(self._texts, self._logprobs, self._finishes, strict=True))
        ]
        return self._frame | {"choices": choices, "usage": self.usage(), "foretoken": self.drafting()}

    def chunks(self, part: Part) -> Iterator[dict[str, Any]]:
        """The chunks that say what a part says, which has been taken in."""
        is_first = len(self._texts[part.index]) == 1
        if part.text or is_first:
            told = {} if self._asked.foretoken is None else {"foretoken": _told(part)}
            yield self._chunk(part.index, self._delta(part.text, is_first), None, part.logprobs) | told
        is_done = len(self._finishes) == self._num
        if part.finish is not None:
            told = {"foretoken": self.drafting()} if is_done else {}
            yield self._chunk(part.index, self._delta("", False), part.finish.reason) | told
        if is_done and self._shows_usage:
            yield self._frame | {"object": self._chunk_kind, "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Tokens of the prompts and the answers. Predicted ones are all that were drafted, from wherever."""
        total = DecodeStats.total(finish.stats for finish in self._finishes)
        of_prompts = sum(finish.num_prompt_tokens for finish in self._finishes[:: self._asked.n or 1])
        return {
            "prompt_tokens": of_prompts,
            "completion_tokens": total.tokens,
            "total_tokens": of_prompts + total.tokens,
            "completion_tokens_details": {
                "accepted_prediction_tokens": total.accepted,
                "rejected_prediction_tokens": total.drafted - total.accepted,
                "reasoning_tokens": 0,
                "audio_tokens": 0,
            },
        }

    def drafting(self) -> dict[str, Any]:
        """What drafting did for all answers."""
        total = DecodeStats.total(finish.stats for finish in self._finishes)
        return {
            "drafter": self._drafter,
            "steps": total.steps,
            "drafted": total.drafted,
            "accepted": total.accepted,
            "acceptance_length": total.acceptance_length,
            "seconds": self._seconds,
            "seconds_saved": None if self._drafter == "none" else self._saved,
        }

    def _said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}} if self._is_chat else {"text": text}

    def _delta(self, text: str, is_first: bool) -> dict[str, Any]:
        if not self._is_chat:
            return {"text": text}
        role = {"role": "assistant"} if is_first else {}
        return {"delta": role | ({"content": text} if text or is_first else {})}

    def _likely(self, told: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._asked.num_logprobs is None:
            return None
        return of_chat(told) if self._is_chat else of_completion(told)

    def _chunk(
        self, index: int, said: dict[str, Any], reason: str | None, told: Sequence[TokenLogprob] = ()
    ) -> dict[str, Any]:
        choice = {"index": index, **said, "logprobs": self._likely(told) if told else None, "finish_reason": reason}
        usage = {"usage": None} if self._shows_usage else {}
        return self._frame | {"object": self._chunk_kind, "choices": [choice]} | usage


def _told(part: Part) -> dict[str, Any]:
    """What a step did, for whoever asks to see it."""
    step = part.step
    return {
        "guessed": part.guessed,
        "tokens": len(step.tokens),
        "drafted": step.draft.num_guesses,
        "accepted": step.num_accepted,
        "wrong": part.wrong,
    }
