"""User signals as types: what a user did, wrote or said, before anything is made of it.

The wire format is one JSON object a signal, told apart by ``type``; see docs/data.md.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

# The pattern says to readers of the JSON Schema what stripping does here: blank text is empty text.
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


Prompt = Text | Annotated[list[Message], Field(min_length=1, fail_fast=True)]
"""A task prompt: plain text (one user message) or chat messages."""


def wrong_roles(prompt: Prompt) -> str | None:
    """What is wrong with the order of a task prompt's messages; None if chat templates take it.

    An optional system message, then user and assistant in turns, from a user's message to a user's.
    """
    if isinstance(prompt, str):
        return None
    roles = [message.role for message in prompt]
    turns = roles[1:] if roles[0] == "system" else roles
    if "system" in turns:
        return "a system message must be the first"
    if not turns:
        return "has no user message"
    if turns[0] != "user":
        return "must begin with a user message (after the system message, if there is one)"
    if again := next((one for one, other in zip(turns, turns[1:], strict=False) if one == other), None):
        return f"two {again} messages in a row; join them into one"
    if turns[-1] != "user":
        return "must end with a user message: what the assistant says to it is the response"
    return None


class _Signal(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    id: str | None = None
    """The caller's own id of this signal; makes an upload idempotent."""
    time: Time | None = None
    """When it happened: ISO 8601 text or seconds since 1970."""


class PairSignal(_Signal):
    """The user preferred one response over another."""

    type: Literal["pair"] = "pair"
    prompt: Prompt
    chosen: Text
    rejected: Text


class InteractionSignal(_Signal):
    """The user got a response, and perhaps rated or edited it."""

    type: Literal["interaction"] = "interaction"
    prompt: Prompt
    response: Text
    rating: FiniteFloat | None = None
    """The user's rating, on whatever scale the app uses; higher is better."""
    edit: Text | None = None
    """The response as the user rewrote it."""


class PostSignal(_Signal):
    """Something the user wrote for others to read."""

    type: Literal["post"] = "post"
    text: Text
    context: Text | None = None
    """What the post replies to (someone else's words)."""


class StatementSignal(_Signal):
    """What the user says of themselves or of their wishes."""

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
