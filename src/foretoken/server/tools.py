"""Functions that a model may call: how it is told of them, how it writes a call, and how a call is read.

A grammar keeps calls to their form and their arguments to the functions' schemas. So a call is read without guessing,
also while it is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foretoken.api.language_model import LanguageModel
from foretoken.server.schema import ChatAsked, Message, Tool
from foretoken.server.stops import num_begun

Turn = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """How a model writes a call: ``mark``, ``then``, the name, ``between``, the arguments as JSON, ``close``.

    Args:
        mark: Where a call begins.
        then: What follows it.
        close: What follows the arguments.
        is_anywhere: Whether the mark may come after some text. If not, an answer is either text or calls.
        is_templates: Whether the model's own chat template writes calls so, and tells the model of functions.
    """

    mark: str
    then: str
    close: str
    is_anywhere: bool
    is_templates: bool
    between: str = '", "arguments": '

    def written(self, name: str, arguments: Any) -> str:
        """A call."""
        return f"{self.mark}{self.then}{name}{self.between}{json.dumps(arguments, ensure_ascii=False)}{self.close}"


# As Hermes and Qwen write calls, and many after them.
TAGGED = Form("<tool_call>", '\n{"name": "', "}\n</tool_call>", is_anywhere=True, is_templates=True)
# For all others, whom we tell of the functions ourselves.
BARE = Form('{"name": "', "", "}", is_anywhere=False, is_templates=False)
SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as templates write JSON
TOLD = """You can call these functions:
{functions}
To call one, write nothing but a line of this form, and one more such line for each further call:
{example}"""


def form_of(lm: LanguageModel) -> Form:
    """How a model writes calls, by its chat template."""
    template = getattr(lm.tokenizer, "chat_template", None)
    texts = template.values() if isinstance(template, Mapping) else [template or ""]
    is_tagged = any(TAGGED.mark in text and '"arguments"' in text and "tools" in text for text in texts)
    # What is no text of the answer could not be read there.
    return TAGGED if is_tagged and TAGGED.mark not in lm.engine.special_tokens else BARE


def conversation(asked: ChatAsked, form: Form) -> tuple[list[Turn], list[Turn]]:
    """The turns of a request and the functions, as the chat template takes both."""
    functions = [tool.model_dump(exclude_none=True, by_alias=True) for tool in asked.callable_tools]
    names: dict[str, str] = {}
    turns = [_turn(message, form, names) for message in asked.messages]
    if form.is_templates or not functions:
        return turns, functions
    example = form.written("NAME", {"ARGUMENT": "VALUE"})
    told = TOLD.format(functions="\n".join(json.dumps(one["function"]) for one in functions), example=example)
    if turns[0]["role"] == "system":
        turns[0] = turns[0] | {"content": f"{turns[0]['content']}\n\n{told}"}
        return turns, []
    return [{"role": "system", "content": told}, *turns], []


def _turn(message: Message, form: Form, names: dict[str, str]) -> Turn:
    """A message as a turn; ``names`` has the functions that were called, by the id of the call."""
    turn = message.as_turn()
    calls = [(call.function.name, call.function.parsed) for call in message.tool_calls]
    names |= {call.id: call.function.name for call in message.tool_calls}
    if form.is_templates:
        functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
        return turn | ({"tool_calls": [{"type": "function", "function": one} for one in functions]} if calls else {})
    if message.role == "tool":
        said = f"The result of {names[message.tool_call_id or '']}:\n{turn['content']}"
        return {"role": "user", "content": said}
    return turn | {"content": "\n".join(filter(None, [turn["content"], *(form.written(*call) for call in calls)]))}


def grammar_of(asked: ChatAsked, form: Form) -> str:
    """The grammar of an answer that may call functions, or must, in llguidance's dialect of Lark."""
    calls = " | ".join(_call(tool, form) for tool in asked.callable_tools)
    more = '("\\n" MARK call)*' if asked.parallel_tool_calls is not False else ""
    mark = re.escape(form.mark).replace("\\ ", " ")
    lines = [f"called: before call {more}", f"call: {calls}", f"MARK: {json.dumps(form.mark)}"]
    if asked.must_call:
        return "\n".join(["start: called", "before: MARK", *lines])
    if form.is_anywhere:
        lines += [f"before[lazy]: /(?s:.*){mark}/", f"TEXT: /(?s:.*)/ & ~/(?s:.*){mark}(?s:.*)/"]
    else:
        lines += ["before: MARK", f"TEXT: /(?s:.*)/ & ~/{mark}(?s:.*)/"]
    return "\n".join(["start: TEXT | called", *lines])


def _call(tool: Tool, form: Form) -> str:
    function = tool.function
    schema = {"type": "object"} | (function.parameters or {"additionalProperties": False}) | {"x-guidance": SPACES}
    begins = json.dumps(form.then + function.name + form.between)
    return f"({begins} %json {json.dumps(schema)} {json.dumps(form.close)})"


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of an answer.

    Args:
        text: Of the answer, or of the arguments of a call.
        call: Which call, from 0 on; None for text that is no call's.
        name: The function's, where a call begins.
    """

    text: str
    call: int | None = None
    name: str | None = None


class CallReader:
    r"""Tells text and calls apart in an answer, as it comes.

    Args:
        form: How calls are written.

    >>> reader = CallReader(TAGGED)
    >>> reader.push("Let me see.<tool_")
    [Said(text='Let me see.', call=None, name=None)]
    >>> reader.push('call>\n{"name": "add", "arguments": {"a": 1')
    [Said(text='', call=0, name='add'), Said(text='{"a": 1', call=0, name=None)]
    >>> reader.push("}}\n</tool_call>"), reader.num_calls, reader.is_between_calls
    ([Said(text='}', call=0, name=None)], 1, True)
    """

    def __init__(self, form: Form) -> None:
        self._form = form
        self._begins = re.compile(f'{re.escape(form.mark + form.then)}([^"]*){re.escape(form.between)}')
        self.num_calls = 0
        self._held = ""
        self._is_new = True  # no text has been said
        self._arguments: _JsonEnd | None = None  # of the call that is written

    @property
    def is_between_calls(self) -> bool:
        """Whether every call that has begun is whole."""
        return self._arguments is None

    def push(self, text: str) -> list[Said]:
        """What some more text says."""
        said: list[Said] = []
        self._held += text
        while (piece := self._next()) is not None:
            said.append(piece)
        return said

    def flush(self) -> list[Said]:
        """What was held back, at the end of the answer, if no call came before it."""
        held, self._held = self._held, ""
        return [Said(held)] if held and self.num_calls == 0 else []

    def _next(self) -> Said | None:
        """The next piece of what is held; None if there is none before more comes."""
        if self._arguments is not None:
            return self._piece_of_arguments(self._arguments)
        length = self._length_of_text() if self.num_calls == 0 else 0  # what stands between calls is no text
        if length:
            said, self._held, self._is_new = Said(self._held[:length]), self._held[length:], False
            return said
        found = self._begins.search(self._held)
        if found is None:
            return None
        self._held, self._arguments = self._held[found.end() :], _JsonEnd()
        self.num_calls += 1
        return Said("", self.num_calls - 1, found[1])

    def _length_of_text(self) -> int:
        """How much of what is held comes before any call, for certain."""
        mark, held = self._form.mark, self._held
        if self._form.is_anywhere:
            place = held.find(mark)
            return place if place >= 0 else len(held) - num_begun(held, mark)
        may_begin = self._is_new and (held.startswith(mark) or mark.startswith(held))
        return 0 if may_begin else len(held)

    def _piece_of_arguments(self, end: _JsonEnd) -> Said | None:
        if not self._held:
            return None
        length = end.find(self._held)
        said = Said(self._held[:length], self.num_calls - 1)
        self._held = self._held[length:]
        if end.is_reached:
            self._arguments = None
        return said


class _JsonEnd:
    """Finds where a JSON object ends, as its text comes."""

    def __init__(self) -> None:
        self._depth, self._in_string, self._escaped = 0, False, False
        self.is_reached = False

    def find(self, text: str) -> int:
        """How many characters of some more text belong to the object."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped, self._in_string = character == "\\", character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_reached = True
                    return place + 1
        return len(text)
