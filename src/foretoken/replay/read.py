"""Logs as items: JSON lines of prompts and answers, turned to tokens.

A line is an object with ``prompt``, a string or messages, and ``output``, the answer; ``task`` names its kind and
``followups``, a list of ``{"input": messages, "output": answer}``, holds later turns. Messages become ``role: content``
lines; a content that is null, as beside tool calls, is empty, and one of several text parts is all of them together.
With later turns asked for, each is an item of its own whose prompt is all text before it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from foretoken.texts import is_text, open_lines
from foretoken.tokenizing import batch_encoder, load_tokenizer

MIN_OUTPUT = 16  # shorter answers are passed over
MAX_NAMED = 1000  # skipped lines of a file that are named
MAX_TURNS = 1 << 26  # characters of a line's prompts together, each later turn's with all before it

# A tokenizer takes a hundred times the size of a text, so that only so much is given to it at once: texts, characters,
# and of one text what holds the tokens that are kept, many times over.
BATCH, BATCH_CHARACTERS = 64, 1 << 21
PIECE, TOKEN_CHARACTERS = 1 << 18, 64

Encode = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class Reading:
    """Which items of a file to read, and how.

    Args:
        tokenizer: As ``load_tokenizer`` takes it.
        limit: The most items of a file. If None, all.
        max_prompt: How many tokens of a prompt are kept, its last ones.
        max_output: How many tokens of an answer are kept, its first ones.
        followups: Whether later turns are items too.
    """

    tokenizer: str
    limit: int | None = None
    max_prompt: int = 6000
    max_output: int = 400
    followups: bool = False


@dataclass(frozen=True)
class Trace:
    """A prompt and the answer that a model gave, in tokens; arrays, which a whole log fits into."""

    prompt: array[int]
    record: array[int]
    task: str | None = None


@dataclass
class Log:
    """What a file gave.

    Attributes:
        traces: The items, in the order of the file.
        skipped: The first ``MAX_NAMED`` lines that could not be used, as (number from 1, what is wrong).
        unusable: How many could not be used.
        short: How many answers were passed over for having less than ``MIN_OUTPUT`` tokens.
    """

    traces: list[Trace] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    unusable: int = 0
    short: int = 0

    def skip(self, line: int, reason: str) -> None:
        """Note that a line could not be used."""
        self.unusable += 1
        if len(self.skipped) < MAX_NAMED:
            self.skipped.append((line, reason))


@lru_cache(maxsize=2)
def read_log(path: str, reading: Reading) -> Log:
    """The log in a file; the last ones stay in memory, since every drafter reads the same.

    Raises:
        ForetokenError: If the file or the tokenizer cannot be read.
    """
    return read_traces(Path(path), batch_encoder(load_tokenizer(reading.tokenizer)), reading)


def read_traces(path: Path, encode: Encode, reading: Reading) -> Log:
    """The first items of a file with an answer of at least ``MIN_OUTPUT`` tokens.

    Raises:
        ForetokenError: If the file cannot be read.
    """
    log = Log()
    batch: list[_Text] = []
    size = 0
    for text in _texts(path, reading, log):
        batch.append(text)
        size += len(text.prompt) + len(text.output)
        missing = BATCH if reading.limit is None else min(BATCH, reading.limit - len(log.traces))
        if len(batch) >= missing or size >= BATCH_CHARACTERS:
            _tokenize(batch, encode, reading, log)
            batch, size = [], 0
            if reading.limit is not None and len(log.traces) >= reading.limit:
                return log
    _tokenize(batch, encode, reading, log)
    return log


def prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt as one text; messages become ``role: content`` lines."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


@dataclass(frozen=True)
class _Text:
    line: int
    prompt: str
    output: str
    task: str | None


class _Unusable(Exception):
    """Why a line is skipped."""


def _tokenize(batch: list[_Text], encode: Encode, reading: Reading, log: Log) -> None:
    """Add the items of a batch to the log."""
    answers = [(text, record) for text, record in zip(batch, encode([text.output for text in batch]), strict=True)]
    long = [(text, record) for text, record in answers if len(record) >= MIN_OUTPUT]
    log.short += len(answers) - len(long)
    prompts = encode([text.prompt for text, _ in long])
    for (text, record), prompt in zip(long, prompts, strict=True):
        if prompt:
            kept = array("i", prompt[-reading.max_prompt :]), array("i", record[: reading.max_output])
            log.traces.append(Trace(*kept, text.task))
        else:
            log.skip(text.line, "its prompt is empty")


def _texts(path: Path, reading: Reading, log: Log) -> Iterator[_Text]:
    """The items of a file before tokenizing; bad lines go to the log."""
    with open_lines(path) as lines:
        for number, line, fault in lines:
            try:
                row = _parse(line, fault)
                task = row.get("task")
                task = _checked_text(task, "task") if isinstance(task, str) else None
                # All turns first: a line is used whole or not at all.
                turns = list(_turns(row, reading.followups))
            except _Unusable as error:
                log.skip(number, str(error))
                continue
            for prompt, output in turns:
                yield _Text(number, _end(prompt, reading.max_prompt), _beginning(output, reading.max_output), task)


def _beginning(text: str, tokens: int) -> str:
    """What holds the first tokens of a text; of one that is very long, up to where a line ends if it can be."""
    most = max(PIECE, TOKEN_CHARACTERS * tokens)
    if len(text) <= most:
        return text
    return text[: text.rfind("\n", most // 2, most) + 1 or most]


def _end(text: str, tokens: int) -> str:
    """What holds the last tokens of a text; of one that is very long, from where a line begins if it can be."""
    most = max(PIECE, TOKEN_CHARACTERS * tokens)
    if len(text) <= most:
        return text
    return text[text.find("\n", len(text) - most, len(text) - most // 2) + 1 or len(text) - most :]


def _parse(line: str, fault: str | None) -> dict[str, Any]:
    if fault is not None:
        raise _Unusable(fault)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _Unusable("it is not JSON") from error
    if not isinstance(row, dict):
        raise _Unusable("it is not a JSON object")
    for key in ("prompt", "output"):
        if row.get(key) is None:
            raise _Unusable(f"it has no {key!r}")
    return row


def _turns(row: dict[str, Any], followups: bool) -> Iterator[tuple[str, str]]:
    """Prompt and answer of the first turn, and of the later ones where they are asked for."""
    text, output = _checked_prompt(row["prompt"]), _checked_text(row["output"], "output")
    yield text, output
    turns = (row.get("followups") or []) if followups else []
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise _Unusable("its 'followups' are not a list of objects")
    opening = "" if isinstance(row["prompt"], str) else "\nassistant: "
    size = len(text)
    for turn in turns:
        text += f"{opening}{output}\n{_checked_prompt(turn.get('input'))}"
        output = _checked_text(turn.get("output"), "output")
        size += len(text)
        if size > MAX_TURNS:
            raise _Unusable(f"its turns come to more than {MAX_TURNS} characters")
        yield text, output


def _checked_prompt(prompt: Any) -> str:
    fits = isinstance(prompt, str) or (
        isinstance(prompt, list)
        and all(
            isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message
            for message in prompt
        )
    )
    if not fits:
        raise _Unusable("its prompt is neither a text nor a list of messages with role and content")
    if not isinstance(prompt, str):
        prompt = [message | {"content": _content(message["content"])} for message in prompt]
    return _checked_text(prompt_text(prompt), "prompt")


def _content(content: Any) -> str:
    """The text of a message."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return _checked_text(content, "content")
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise _Unusable("its 'content' has parts that are not text")
    return "".join(_checked_text(part["text"], "content") for part in content)


def _checked_text(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise _Unusable(f"its {name!r} is not a text")
    if not is_text(text):  # JSON can say half a character
        raise _Unusable(f"its {name!r} is not Unicode text")
    return text
