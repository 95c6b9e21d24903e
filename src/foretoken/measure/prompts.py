"""The prompts that models are measured with: several kinds, some with a recorded answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from foretoken.core.errors import ForetokenError
from foretoken.texts import is_text

FIELDS = ("id", "kind", "prompt")


@dataclass(frozen=True)
class Question:
    """A prompt in a model's tokens.

    Args:
        id: Names it.
        kind: What it is of, "code" or "story" for example; results are grouped by it.
        prompt: Its tokens, at least one.
        record: The tokens of a recorded answer, at least two. The record then chooses the tokens, and the model only
            spends the time. If None, the model answers.
    """

    id: str
    kind: str
    prompt: Sequence[int]
    record: Sequence[int] | None = None


def bundled_prompts() -> str:
    """The 36 prompts that come with the package, as JSON lines: code, edits, patterns, stories and chats."""
    return (files("foretoken.measure") / "prompts.jsonl").read_text(encoding="utf-8")


def parse_prompts(text: str, encode: Callable[[str], Sequence[int]], limit: int | None = None) -> list[Question]:
    """Questions from JSON lines, each with ``id``, ``kind`` and ``prompt``.

    Args:
        text: The lines.
        encode: Makes tokens of a prompt.
        limit: How many of each kind are taken. If None, all.

    Raises:
        ForetokenError: If a line is not such a prompt, an id comes twice, or there are no prompts.
    """
    if limit is not None and limit < 1:
        raise ForetokenError(f"limit is {limit}: take at least 1 prompt of each kind.")
    taken: dict[str, Question] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not all(is_text(row.get(name)) and row[name] for name in FIELDS):
            raise ForetokenError(f"Line {number} of the prompts is no object with the texts id, kind and prompt.")
        if row["id"] in taken:
            raise ForetokenError(f"Line {number} of the prompts has the id {row['id']!r} of an earlier one.")
        if limit is None or sum(row["kind"] == other.kind for other in taken.values()) < limit:
            taken[row["id"]] = Question(row["id"], row["kind"], encode(row["prompt"]))
    if not taken:
        raise ForetokenError("There are no prompts: give lines with id, kind and prompt.")
    return list(taken.values())
