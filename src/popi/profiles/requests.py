"""Request bodies of the profile API. Unknown fields are rejected."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    model_validator,
)

from popi.profiles.fields import (
    LONGEST_CLAUSES,
    LONGEST_TEXT,
    MAX_CLAUSES,
    MAX_FORBIDDEN,
    MAX_MESSAGES,
    MAX_REASONS,
    MAX_SIGNALS,
    MAX_USERS,
    AnswerId,
    Attribution,
    Author,
    Body,
    ClauseId,
    ClauseText,
    NoNul,
    Scope,
    SignalId,
    Tenant,
    UserId,
    under_present_names,
)
from popi.profiles.user_id import LONGEST_ID
from popi.signals.types import Signal, TargetPair


def _ids_fit(signals: list[Signal]) -> None:
    for index, signal in enumerate(signals):
        if signal.id is not None and not (0 < len(signal.id) <= LONGEST_ID and "\x00" not in signal.id):
            raise ValueError(f"signals[{index}].id: must have 1 to {LONGEST_ID} characters, none of them NUL")


def _bounded(value: Any) -> Any:
    """Check a signal before it is validated. As Python code, this also lets other threads run between signals.
    Otherwise a long list would be validated in one native call, and the event loop would wait for all of it.
    """
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if isinstance(prompt, list) and len(prompt) > MAX_MESSAGES:
        raise ValueError(f"prompt: has more than {MAX_MESSAGES:,} messages")
    return value


Sent = Annotated[Signal, BeforeValidator(_bounded)]
SentPair = Annotated[TargetPair, BeforeValidator(_bounded)]


class SignalsUpload(Body):
    """Signals of one user, oldest first."""

    signals: list[Sent] = Field(fail_fast=True, min_length=1, max_length=MAX_SIGNALS)
    """Signals with an id that is already stored are ignored. Without an id, the content identifies a signal."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        _ids_fit(self.signals)
        return self


class ClauseEdit(Body):
    """One statement of an edited summary."""

    id: ClauseId | None = None
    """The id of an existing clause. Without one, the clause gets a new id."""
    text: ClauseText
    locked: bool = False
    """Whether renewals keep it word for word."""
    signals: list[SignalId] = Field(fail_fast=True, default_factory=list, max_length=MAX_REASONS)
    """Ids of the signals that it rests on."""
    attribution: Attribution | None = None
    """Accepted as returned by the API; has no effect."""
    author: Author | None = None
    """Accepted as returned by the API; has no effect."""

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, values: Any) -> Any:  # of exports
        return under_present_names(values, attribution="found")


class ForbiddenEdit(Body):
    """A statement that a summary must not contain."""

    id: ClauseId | None = None
    """The id of an existing entry. Without one, the entry gets a new id."""
    text: ClauseText | None = None
    """The user's own words, stored separately so that they can see them. Optional if `id` names an existing entry."""
    send_to_model: bool | None = None
    """Whether it may be sent to the model that writes summaries, so that the model also avoids it in other words.
    Default: unchanged; false for a new entry."""

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, values: Any) -> Any:  # of exports
        return under_present_names(values, send_to_model="tell")

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.id is None and self.text is None:
            raise ValueError("give text, or the id of an existing entry")
        return self


class SummaryEdit(Body):
    """A summary, either as text or as clauses, or neither to change only `forbidden`. An empty summary switches
    personalisation off."""

    text: Annotated[NoNul, StringConstraints(max_length=LONGEST_TEXT)] | None = None
    clauses: list[ClauseEdit] | None = Field(fail_fast=True, default=None, max_length=MAX_CLAUSES)
    forbidden: list[ForbiddenEdit] | None = Field(fail_fast=True, default=None, max_length=MAX_FORBIDDEN)
    """Statements that no renewal may repeat. Default: unchanged. If given alone, unlocked clauses with the same words
    are removed."""

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        neither = self.text is None and self.clauses is None
        if (neither and self.forbidden is None) or (self.text is not None and self.clauses is not None):
            raise ValueError("give either text or clauses, or only forbidden")
        ids = [clause.id for clause in self.clauses or () if clause.id is not None]
        if len(ids) != len(set(ids)):
            raise ValueError("two clauses have the same id")
        for name, parts in (("clauses", self.clauses), ("forbidden", self.forbidden)):
            if sum(len(one.text or "") for one in parts or ()) > LONGEST_CLAUSES:
                raise ValueError(f"{name}: more than {LONGEST_CLAUSES:,} characters in total")
        return self


class Controls(Body):
    """A user's two switches; omitted ones stay unchanged. They can be set before anything is stored about the user."""

    use: bool | None = None
    """Whether chats get the summary."""
    learn: bool | None = None
    """Whether signals and answers for feedback are stored and summaries renewed. If off, this is ignored whatever its
    source."""

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if self.use is None and self.learn is None:
            raise ValueError("give use, learn or both")
        return self


class Pause(Body):
    """Both switches at once: while paused, nothing is used or learned."""

    paused: bool


class Feedback(Body):
    """What a user did with an answer: one of thumbs, edit, replaced_by and preferred_over."""

    answer: AnswerId
    """The answer's id from the header `x-popi-answer-id`. The `id` in its body also works if it is unique for the
    user."""
    thumbs: Literal["up", "down"] | None = None
    edit: Annotated[NoNul, StringConstraints(min_length=1, max_length=LONGEST_TEXT, pattern=r"\S")] | None = None
    """The answer as the user rewrote it."""
    replaced_by: AnswerId | None = None
    """The answer that the user requested and chose instead."""
    preferred_over: list[AnswerId] | None = Field(fail_fast=True, default=None, min_length=1, max_length=16)
    """The answers that the user did not choose when picking this one."""

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        actions = [self.thumbs, self.edit, self.replaced_by, self.preferred_over]
        if sum(one is not None for one in actions) != 1:
            raise ValueError("give exactly one of thumbs, edit, replaced_by and preferred_over")
        if self.answer == self.replaced_by or self.answer in (self.preferred_over or ()):
            raise ValueError("an answer is compared with itself")
        return self


class Rollback(Body):
    """The version whose content becomes current again."""

    version: int = Field(ge=1, le=2**62)


class ImportedUser(Body):
    """A user as in a line of popi's JSONL; exports with `format=jsonl` can be imported."""

    user_id: UserId
    signals: list[Sent] = Field(fail_fast=True, default_factory=list, max_length=100 * MAX_SIGNALS)
    targets: list[SentPair] = Field(fail_fast=True, default_factory=list, max_length=100 * MAX_SIGNALS)
    """Target pairs, which are stored as preference pairs after the signals."""
    summary: SummaryEdit | None = None
    """Imported only if the user has no summary yet."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        _ids_fit(self.signals)
        return self


class Import(Body):
    """Users to add, or to add signals to. If one of them is invalid, none is imported."""

    users: list[ImportedUser] = Field(fail_fast=True, min_length=1, max_length=MAX_USERS)


class Merge(Body):
    """The user to merge into the one named in the path."""

    source: UserId
    """The user whose data is moved; this user is gone afterwards."""


class NewKey(Body):
    """A key to create."""

    scope: Scope
    tenant: Tenant | None = None
    """The key's tenant, created with its first key. Default: the tenant in x-popi-tenant, or the caller's own."""
    user_id: UserId | None = None
    """The user of a user key; only for user keys."""

    @model_validator(mode="after")
    def _user_of_a_user_key(self) -> Self:
        if (self.scope == "user") != (self.user_id is not None):
            raise ValueError("user_id is required for a key of scope user, and not allowed for other scopes")
        return self
