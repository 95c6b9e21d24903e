"""OpenAI's objects: a whole answer, and the chunks of one that streams. Ours beside them is ``foretoken``."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from foretoken.core.stats import DecodeStats
from foretoken.server.answers import Finish, Part
from foretoken.server.logprobs import TokenLogprob, of_chat, of_completion
from foretoken.server.schema import Asked, ChatAsked, NamedTool
from foretoken.server.tools import CallReader, Form, Said


class Choice:
    """One of the answers of a request, as its parts come.

    Args:
        form: How it writes calls. None if it may make none.
    """

    def __init__(self, form: Form | None) -> None:
        self._reader = None if form is None else CallReader(form)
        self.parts: list[Said] = []
        self.logprobs: list[TokenLogprob] = []
        self.num_told = 0  # of them, in chunks
        self.has_begun = False  # whether there was a chunk
        self.finish: Finish | None = None
        self._ids: list[str] = []  # of its calls

    def add(self, part: Part) -> list[Said]:
        """Take in a part of it, and tell what that says."""
        self.logprobs += part.logprobs
        self.finish = part.finish
        if self._reader is None:
            said = [Said(part.text)]
        else:
            said = self._reader.push(part.text) + (self._reader.flush() if part.finish else [])
        self.parts += said
        return said

    def finish_reason(self, is_forced: bool) -> str | None:
        """How it ended, in OpenAI's words; to make a call that was forced by name is to stop."""
        if self.finish is None:
            return None
        calls = self._reader is not None and self._reader.num_calls and self._reader.is_between_calls
        return "tool_calls" if calls and self.finish.reason == "stop" and not is_forced else self.finish.reason

    def untold(self) -> list[TokenLogprob]:
        """The tokens that no chunk has told; one does now."""
        untold = self.logprobs[self.num_told :]
        self.num_told = len(self.logprobs)
        return untold

    def text(self) -> str:
        """What it says, but for calls."""
        return "".join(one.text for one in self.parts if one.call is None)

    def message(self) -> dict[str, Any]:
        """The message of a chat."""
        message = {"role": "assistant", "content": self.text(), "refusal": None}
        calls = self.calls(self.parts)
        for call in calls:
            del call["index"]  # which the chunks of a stream have
        return message | {"content": message["content"] or None, "tool_calls": calls} if calls else message

    def calls(self, said: Sequence[Said]) -> list[dict[str, Any]]:
        """What some pieces say of calls, an object for each call."""
        calls: dict[int, dict[str, Any]] = {}
        for one in said:
            if one.call is None:
                continue
            call = calls.setdefault(one.call, {"index": one.call, "function": {"arguments": ""}})
            call["function"]["arguments"] += one.text
            if one.name is not None:
                call |= {"id": self._id(one.call), "type": "function"}
                call["function"]["name"] = one.name
        return list(calls.values())

    def _id(self, call: int) -> str:
        self._ids += [f"call_{uuid.uuid4().hex}" for _ in range(call + 1 - len(self._ids))]
        return self._ids[call]


class Reply:
    """Makes the objects of one request as its parts come.

    Args:
        asked: The request.
        drafter: What drafts for it.
        fingerprint: Tells apart models whose seeds give other texts.
        form: How the model writes calls.
    """

    def __init__(self, asked: Asked, drafter: str, fingerprint: str, form: Form) -> None:
        self._asked, self._drafter = asked, drafter
        self._is_chat = isinstance(asked, ChatAsked)
        kind = "chat.completion" if self._is_chat else "text_completion"
        self._frame = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": fingerprint,
        }
        of_chunks = self._frame | {"object": "chat.completion.chunk" if self._is_chat else kind}
        self._event_begins = f"data: {_dumps(of_chunks)[:-1]},"
        may_call = isinstance(asked, ChatAsked) and asked.callable_tools
        self._is_forced = isinstance(asked, ChatAsked) and isinstance(asked.tool_choice, NamedTool)
        self._choices = [Choice(form if may_call else None) for _ in range((asked.n or 1) * asked.num_prompts)]
        self._seconds = self._saved = 0.0
        self._shows_usage = asked.stream_options is not None and asked.stream_options.include_usage

    def add(self, part: Part) -> list[Said]:
        """Take in a part, and tell what it says."""
        self._seconds += part.seconds
        self._saved += part.seconds_saved
        return self._choices[part.index].add(part)

    def whole(self) -> dict[str, Any]:
        """All answers, once they have ended."""
        choices = [
            {
                "index": index,
                **({"message": choice.message()} if self._is_chat else {"text": choice.text()}),
                "logprobs": self._likely(choice.logprobs),
                "finish_reason": choice.finish_reason(self._is_forced),
            }
            for index, choice in enumerate(self._choices)
        ]
        return self._frame | {"choices": choices, "usage": self.usage(), "foretoken": self.drafting()}

    def events(self, part: Part) -> bytes:
        """Take in a part, and give the server-sent events that say what it says."""
        return "".join(f"{self._event_begins}{_dumps(chunk)[1:]}\n\n" for chunk in self._chunks(part)).encode()

    def _chunks(self, part: Part) -> Iterator[dict[str, Any]]:
        """What chunks have besides the frame."""
        choice = self._choices[part.index]
        is_first, said = not choice.has_begun, self.add(part)
        if is_first or any(one.text or one.name for one in said):
            choice.has_begun = True
            told = {} if self._asked.foretoken is None else {"foretoken": _told(part)}
            yield self._chunk(part.index, self._delta(choice, said, is_first), None, choice.untold()) | told
        is_done = all(one.finish is not None for one in self._choices)
        if part.finish is not None:
            told = {"foretoken": self.drafting()} if is_done else {}
            ended: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
            yield self._chunk(part.index, ended, choice.finish_reason(self._is_forced), choice.untold()) | told
        if is_done and self._shows_usage:
            yield {"choices": [], "usage": self.usage()}

    @property
    def _finishes(self) -> list[Finish]:
        return [choice.finish for choice in self._choices if choice.finish is not None]

    def usage(self) -> dict[str, Any]:
        """Tokens of the prompts and the answers. Predicted ones are all that were drafted, from wherever."""
        total = DecodeStats.total(finish.stats for finish in self._finishes)
        of_each = self._finishes[:: self._asked.n or 1]
        of_prompts = sum(finish.num_prompt_tokens for finish in of_each)
        cached = sum(finish.num_cached_tokens for finish in of_each)
        return {
            "prompt_tokens": of_prompts,
            "completion_tokens": total.tokens,
            "total_tokens": of_prompts + total.tokens,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
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
            "exact": all(finish.exact for finish in self._finishes),
            "steps": total.steps,
            "drafted": total.drafted,
            "accepted": total.accepted,
            "acceptance_length": total.acceptance_length,
            "seconds": self._seconds,
            "seconds_saved": None if self._drafter == "none" else self._saved,
        }

    def _delta(self, choice: Choice, said: Sequence[Said], is_first: bool) -> dict[str, Any]:
        text = "".join(one.text for one in said if one.call is None)
        if not self._is_chat:
            return {"text": text}
        delta: dict[str, Any] = {"role": "assistant"} if is_first else {}
        calls = choice.calls(said)
        if text or (is_first and not calls):
            delta["content"] = text
        return {"delta": delta | ({"tool_calls": calls} if calls else {})}

    def _likely(self, told: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._asked.num_logprobs is None:
            return None
        return of_chat(told) if self._is_chat else of_completion(told)

    def _chunk(
        self, index: int, said: dict[str, Any], reason: str | None, told: Sequence[TokenLogprob]
    ) -> dict[str, Any]:
        choice = {"index": index, **said, "logprobs": self._likely(told) if told else None, "finish_reason": reason}
        usage = {"usage": None} if self._shows_usage else {}
        return {"choices": [choice]} | usage


_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _told(part: Part) -> dict[str, Any]:
    """What a step did, for whoever asks to see it."""
    step = part.step
    return {
        "guessed": part.guessed,
        "tokens": len(step.tokens),
        "rows": step.num_rows,
        "seconds": part.seconds,
        "drafted": step.draft.num_guesses,
        "accepted": step.num_accepted,
        "wrong": part.wrong,
    }
