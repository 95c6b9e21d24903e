"""What a request may say: OpenAI's fields, and ours in the object ``foretoken``.

A field that is not here is refused. So is one of OpenAI's that is not done here, unless its value asks for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError, model_validator

from foretoken.server.errors import ApiError

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_STOPS, MAX_STOP_LENGTH = 4, 256  # OpenAI takes four
MAX_BUDGET = 1024
MAX_TOP = 20  # of the likeliest tokens that are told for each
MAX_TOOLS = 128
KINDS = ("function-", "literal[", "bool", "NamedTool")  # that pydantic names beside fields, where one may be of several
FUNCTION_NAME = r"^[a-zA-Z0-9_-]{1,64}$"

# OpenAI's fields that are not done here, and the values that ask for nothing.
NOT_DONE: Mapping[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "reasoning_effort": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "verbosity": (None,),
    "web_search_options": (None,),
}
# What OpenAI's own answers have as null or empty, and clients send back with the conversation.
OF_ANSWERS = ("annotations", "audio", "function_call", "refusal", "tool_call_id", "tool_calls")


def _text(value: Any) -> Any:
    """The text of a content, which may come in parts.

    Raises:
        ValueError: If a part is no text.
    """
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else None
            said = f"of type {kind[:40]!r}" if isinstance(kind, str) else "that is no text"
            raise ValueError(f"a part {said} cannot be read here: give text only")
        texts.append(part["text"])
    return "".join(texts)


def _list(value: Any) -> Any:
    """A list of one, where one was given."""
    return [value] if isinstance(value, str) else value


def _prompts(value: Any) -> Any:
    """The prompts of a completion.

    Raises:
        ValueError: If they are token ids.
    """
    tokens = value[0] if isinstance(value, list) and value else None
    if isinstance(tokens, int | list):
        raise ValueError("token ids cannot be read here: give the prompt as text")
    return _list(value)


def _not_null(value: Any) -> Any:
    """An empty list, where none was given."""
    return [] if value is None else value


MaybeNull = BeforeValidator(_not_null)
Text = Annotated[str, BeforeValidator(_text, json_schema_input_type=str | list[dict[str, Any]])]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
ASingleOne = BeforeValidator(_list, json_schema_input_type=str | list[str])


class Strict(BaseModel):
    """A JSON object whose fields have the very types that they are said to have."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class CalledFunction(Strict):
    """The function of a call, and what it was given."""

    name: str = Field(pattern=FUNCTION_NAME)
    arguments: str = Field(description="A JSON object, as text.")
    parsed_arguments: Any = Field(default=None, description="What clients make of the arguments: it is not read.")

    @property
    def parsed(self) -> dict[str, Any] | None:
        """The arguments. None if they are no JSON object."""
        try:
            value = json.loads(self.arguments)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


class Call(Strict):
    """A call that an earlier answer made."""

    id: str = Field(max_length=256)
    type: Literal["function"]
    function: CalledFunction


class Message(Strict):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | None = Field(default=None, description="The text, or its parts of the type text.")
    tool_calls: Annotated[list[Call], FailFast(), MaybeNull] = Field(
        default=[], description="What an answer called, in its own turn."
    )
    tool_call_id: str | None = Field(default=None, description="The call whose result this is, in the role tool.")
    name: str | None = Field(default=None, description="Goes to the chat template, which may use it.")

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_null(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if name not in OF_ANSWERS or value not in (None, [])}

    def as_turn(self) -> dict[str, str]:
        """The turn as chat templates know it: they have no developers."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content or ""} | ({} if self.name is None else {"name": self.name})


class Prediction(Strict):
    """What the answer will probably say, such as the file that is to be edited: it is drafted from."""

    type: Literal["content"]
    content: Text


class JsonSchema(Strict):
    """The form of an answer."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(max_length=64)
    description: str | None = Field(default=None, description="For people: the model is not told.")
    definition: dict[str, Any] = Field(alias="schema", description="A JSON schema.")
    strict: bool | None = Field(default=None, description="It is always followed.")


class ResponseFormat(Strict):
    """Whether an answer is JSON. Tell the model so in the prompt, too: the grammar only forbids what is none."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_a_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema, and only with it")
        return self

    @property
    def schema_to_follow(self) -> dict[str, Any] | None:
        """The JSON schema of the answer. None for any text."""
        if self.type == "text":
            return None
        return {"type": "object"} if self.json_schema is None else self.json_schema.definition


class Function(Strict):
    """A function that the model may call."""

    name: str = Field(pattern=FUNCTION_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema of its arguments, an object.")
    strict: bool | None = Field(default=None, exclude=True, description="The schema is always followed.")


class Tool(Strict):
    """What the model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    """A function by its name."""

    name: str


class NamedTool(Strict):
    """The one function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class StreamOptions(Strict):
    """What a stream has besides the answer."""

    include_usage: bool = Field(default=False, description="Whether a last chunk says what the answer took.")


class Drafting(Strict):
    """How an answer is drafted for; its text does not depend on it."""

    drafter: str | None = Field(
        default=None, max_length=256, description="A drafter's name and options, or \"none\". If null, the server's."
    )
    budget: int | None = Field(
        default=None,
        ge=0,
        le=MAX_BUDGET,
        description="Tokens to draft in each step. If null, as many as should save time.",
    )
    namespace: str | None = Field(
        default="default",
        min_length=1,
        max_length=256,
        description="Which earlier answers to draft from; null for none.",
    )
    references: Annotated[list[str], FailFast()] = Field(
        default=[], description="Documents that the answer may quote or edit."
    )
    exact: bool | Literal["auto"] | None = Field(
        default=None,
        description="Whether drafted logits must be plain decoding's in every bit. If null, as the server was started.",
    )


class Asked(Strict):
    """What completions and chats have in common. What is left out, or null, follows the model's own settings."""

    model: str
    stream: bool | None = Field(default=None, description="Whether the answer comes as server-sent events.")
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES, description="Answers, given one after the other.")
    max_tokens: int | None = Field(default=None, ge=1, description="The most tokens of an answer.")
    temperature: float | None = Field(default=None, description="0 is greedy; above 0 samples.")
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = Field(
        default=None, description="Decides the text. Of several answers each has one more than the last."
    )
    stop: Annotated[list[Stop], ASingleOne, Field(max_length=MAX_STOPS)] | None = Field(
        default=None, description="Strings that end the answer, which does not have them."
    )
    prediction: Prediction | None = None
    response_format: ResponseFormat | None = None
    foretoken: Drafting | None = None
    user: str | None = Field(default=None, description="No answer depends on it; nor on the next two.")
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    SAMPLING: ClassVar = (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    )

    @property
    def sampling(self) -> dict[str, Any]:
        """What it says of how tokens are chosen, but for the seed."""
        return {name: value for name in self.SAMPLING if (value := getattr(self, name)) is not None}

    @property
    def num_prompts(self) -> int:
        """How many prompts are to be answered."""
        return 1

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are told for each token. None if not even its own logprob is."""
        raise NotImplementedError

    def check(self) -> None:
        """Refuse fields that do not go together.

        Raises:
            ApiError: If there are some.
        """
        if self.stream_options is not None and not self.stream:
            raise _invalid("stream_options", "it goes with a stream, so let stream be true")

    @property
    def max_new_tokens(self) -> int | None:
        """The most tokens of an answer. None leaves it to the model."""
        return self.max_tokens


class CompletionAsked(Asked):
    """The body of ``/v1/completions``."""

    prompt: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        FailFast(),
        BeforeValidator(_prompts, json_schema_input_type=str | list[str]),
        Field(min_length=1, max_length=MAX_PROMPTS, description="A text to continue, or several."),
    ]
    max_tokens: int | None = Field(default=16, ge=1, description="The most tokens of an answer.")
    logprobs: int | None = Field(
        default=None, ge=0, le=MAX_TOP, description="Tell how likely each token was, and so many of the likeliest."
    )

    @property
    def num_prompts(self) -> int:
        return len(self.prompt)

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs


class ChatAsked(Asked):
    """The body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], FailFast()] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = Field(default=None, description="Tell how likely each token was.")
    top_logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_TOP,
        description="How many of the likeliest tokens to tell with each.",
    )

    tools: Annotated[list[Tool], FailFast(), MaybeNull, Field(max_length=MAX_TOOLS)] = Field(
        default=[], description="Functions that the model may call."
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        default=None,
        description="Whether it may call them, must call one, or must call a certain one. If null, it may.",
    )
    parallel_tool_calls: bool | None = Field(default=None, description="Whether an answer may make several calls.")

    @property
    def callable_tools(self) -> list[Tool]:
        """The functions that the answer may call."""
        if isinstance(self.tool_choice, NamedTool):
            return [tool for tool in self.tools if tool.function.name == self.tool_choice.function.name]
        return [] if self.tool_choice == "none" else self.tools

    @property
    def must_call(self) -> bool:
        """Whether the answer must be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise _invalid("top_logprobs", "it goes with logprobs, so let that be true")
        self._check_tools()
        called: set[str] = set()
        for i, message in enumerate(self.messages):
            _check_message(message, f"messages.{i}", called)

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools]
        for i, tool in enumerate(self.tools):
            if (tool.function.parameters or {}).get("type", "object") != "object":
                raise _invalid(f"tools.{i}.function.parameters", "a function takes an object")
        if len(set(names)) < len(names):
            raise _invalid("tools", "two functions have one name")
        if isinstance(self.tool_choice, NamedTool) and not self.callable_tools:
            raise _invalid("tool_choice", f"there is no function {self.tool_choice.function.name[:64]!r} in tools")
        if self.tool_choice == "required" and not names:
            raise _invalid("tool_choice", "there are no tools that could be called")
        if self.callable_tools and self.response_format is not None and self.response_format.type != "text":
            raise _invalid("response_format", "an answer that may be a call has a form of its own: leave out the tools")

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def max_new_tokens(self) -> int | None:
        return min(filter(None, (self.max_tokens, self.max_completion_tokens)), default=None)


def _check_message(message: Message, place: str, called: set[str]) -> None:
    """Refuse a turn that lacks what its role needs, or has what its role has not.

    Args:
        message: The turn.
        place: What the error calls it.
        called: The calls of earlier turns, by their ids; those of this one join them.

    Raises:
        ApiError: If so.
    """
    if message.content is None and not message.tool_calls:
        raise ApiError(400, f"{place}.content is missing: give it.", "missing_required_parameter", f"{place}.content")
    if message.tool_calls and message.role != "assistant":
        raise _invalid(f"{place}.tool_calls", "the assistant alone makes calls")
    for i, call in enumerate(message.tool_calls):
        if call.function.parsed is None:
            raise _invalid(f"{place}.tool_calls.{i}.function.arguments", "they are the text of a JSON object")
        called.add(call.id)
    if (message.role == "tool") != (message.tool_call_id is not None):
        raise _invalid(f"{place}.tool_call_id", "the role tool has one, and no other role")
    if message.tool_call_id is not None and message.tool_call_id not in called:
        raise _invalid(f"{place}.tool_call_id", "no earlier turn made this call")


AnyAsked = TypeVar("AnyAsked", bound=Asked)


def read_asked(kind: type[AnyAsked], body: Any) -> AnyAsked:
    """What a request asks for.

    Raises:
        ApiError: If a field is missing, unknown, not done here, or has a value that it cannot have.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "The body is no JSON object: send one with the fields of the request.", "invalid_json")
    fields = dict(body)
    for name, neutral in NOT_DONE.items():
        value = fields.pop(name, None)
        if not any(type(value) is type(one) and value == one for one in neutral):
            raise ApiError(400, f"{name} is not supported here: leave it out.", "unsupported_parameter", name)
    unknown = next((name for name in fields if name not in kind.model_fields), None)
    if unknown is not None:
        raise ApiError(400, f"There is no field {unknown[:100]!r}: leave it out.", "unknown_parameter", unknown[:100])
    try:
        asked = kind.model_validate(fields)
    except ValidationError as error:
        raise _told(error) from None
    asked.check()
    return asked


def _invalid(place: str, reason: str) -> ApiError:
    return ApiError(400, f"{place} cannot be used: {reason}.", "invalid_value", place)


def _told(error: ValidationError) -> ApiError:
    """The first fault, in a sentence."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith(KINDS))[:200]
    if first["type"] == "missing":
        return ApiError(400, f"{place} is missing: give it.", "missing_required_parameter", place)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"There is no field {place!r}: leave it out.", "unknown_parameter", place)
    reason = first["msg"].removeprefix("Value error, ")
    return _invalid(place, f"{reason[0].lower()}{reason[1:]}")
