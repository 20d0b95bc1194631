"""Types of user signals: the raw observations of what a user did, wrote or said.

The wire format is one JSON object per signal, distinguished by ``type``; see docs/data.md.
"""

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    JsonValue,
    StringConstraints,
    Tag,
)

# The pattern expresses in the JSON Schema that blank text counts as empty, as stripping does here.
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True, pattern=r"\S")]


def _iso(value: str) -> str:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("must be ISO 8601 text (2026-01-31T08:00:00Z) or seconds since 1970") from None
    return value


Time = Annotated[str, AfterValidator(_iso)] | FiniteFloat


class Message(BaseModel):
    """One chat message."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    role: Literal["system", "user", "assistant"]
    content: Text


def _arguments(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("must be a JSON object, or the text of one") from None


class CalledFunction(BaseModel):
    """The name and arguments of a tool call."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    name: Text
    arguments: Annotated[
        dict[str, JsonValue], BeforeValidator(_arguments, json_schema_input_type=dict[str, JsonValue] | str)
    ]
    """Arguments by name; also accepted as a JSON string, as returned by OpenAI's API."""


class ToolCall(BaseModel):
    """A tool call, in the format of OpenAI's API and TRL's datasets."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ToolCallMessage(BaseModel):
    """An assistant message with tool calls; its content may be empty."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    role: Literal["assistant"]
    content: Annotated[str, StringConstraints(strip_whitespace=True)] = ""
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)]


class ToolMessage(BaseModel):
    """A tool's result."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    role: Literal["tool"]
    content: Text
    tool_call_id: str | None = None
    """The id of the call that this message answers."""
    name: str | None = None
    """The tool's name."""


KINDS = ("message", "message with tool calls", "message of a tool")
"""Names of the three kinds of messages in pydantic's errors."""


def _kind(value: Any) -> str:
    get = value.get if isinstance(value, dict) else lambda field: getattr(value, field, None)
    if get("role") == "tool":
        return KINDS[2]
    return KINDS[0] if get("tool_calls") is None else KINDS[1]


Turn = Annotated[
    Annotated[Message, Tag(KINDS[0])]
    | Annotated[ToolCallMessage, Tag(KINDS[1])]
    | Annotated[ToolMessage, Tag(KINDS[2])],
    Discriminator(_kind),
]
"""A message of a conversation."""
Prompt = Text | Annotated[list[Turn], Field(min_length=1, fail_fast=True)]
"""A task prompt: plain text (one user message) or chat messages."""


def message_text(turn: Turn) -> str:
    """All text of a message: its content, and its tool calls with their arguments."""
    if not isinstance(turn, ToolCallMessage):
        return turn.content
    functions = [call.function for call in turn.tool_calls]
    calls = [f"calls {call.name}({json.dumps(call.arguments, ensure_ascii=False)})" for call in functions]
    return " ".join([turn.content, *calls] if turn.content else calls)


def wrong_roles(prompt: Prompt) -> str | None:
    """Describe what is wrong with the order of a task prompt's messages; `None` if chat templates accept it.

    The order is: an optional system message, then user and assistant messages in turn. An assistant message with tool
    calls is followed by one tool message per call. The last message is a user's or a tool's.
    """
    if isinstance(prompt, str):
        return None
    turns = prompt[1:] if prompt[0].role == "system" else prompt
    roles = [message.role for message in turns]
    if "system" in roles:
        return "a system message must come first"
    if not roles:
        return "has no user message"
    if roles[0] != "user":
        return "must begin with a user message (after the system message, if there is one)"
    calls: list[ToolCall] = []  # not yet answered
    for before, message in zip([None, *turns], turns, strict=False):
        if isinstance(message, ToolMessage):
            if not calls:
                return "a tool message must follow an assistant message with as many tool_calls"
            first = calls.pop(0)
            if None not in (first.id, message.tool_call_id) and first.id != message.tool_call_id:
                return f"tool_call_id {message.tool_call_id!r} does not answer the call {first.id!r}; keep their order"
            continue
        if calls:
            return f"the call of {calls[0].function.name!r} has no tool message with its result"
        if before is not None and before.role == message.role:
            return f"two {message.role} messages in a row; join them into one"
        if isinstance(before, ToolMessage) and message.role == "user":
            return "a user message follows a tool message; the assistant must answer first"
        calls = list(message.tool_calls) if isinstance(message, ToolCallMessage) else []
    if calls:
        return f"the call of {calls[0].function.name!r} has no tool message with its result"
    if roles[-1] == "assistant":
        return "must end with a user or tool message; the assistant's answer to it is the response"
    return None


class _Signal(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    id: str | None = None
    """The caller's id for this signal; makes uploads idempotent."""
    time: Time | None = None
    """When the signal occurred: ISO 8601 text or seconds since 1970."""


class PairSignal(_Signal):
    """The user preferred one response over another."""

    type: Literal["pair"] = "pair"
    prompt: Prompt
    chosen: Text
    rejected: Text


class InteractionSignal(_Signal):
    """The user received a response, and may have rated or edited it."""

    type: Literal["interaction"] = "interaction"
    prompt: Prompt
    response: Text
    rating: FiniteFloat | None = None
    """The user's rating, on the app's own scale; higher is better."""
    edit: Text | None = None
    """The response as the user rewrote it."""


class PostSignal(_Signal):
    """A text the user wrote for others."""

    type: Literal["post"] = "post"
    text: Text
    context: Text | None = None
    """What the post replies to (someone else's text)."""


class StatementSignal(_Signal):
    """A statement of the user about themselves or their wishes."""

    type: Literal["statement"] = "statement"
    text: Text


class DemographicSignal(_Signal):
    """A demographic fact about the user."""

    type: Literal["demographic"] = "demographic"
    text: Text


Signal = Annotated[
    PairSignal | InteractionSignal | PostSignal | StatementSignal | DemographicSignal,
    Field(discriminator="type"),
]


class TargetPair(BaseModel):
    """The pair that a summary is scored on; never among the signals."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    prompt: Prompt
    chosen: Text
    rejected: Text


class User(BaseModel):
    """One line of a popi JSONL file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    user_id: Text
    signals: list[Signal]
    targets: list[TargetPair] = Field(default_factory=list)
