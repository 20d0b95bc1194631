"""Bodies of the profile API. A body with a field that is not here is refused."""

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
    MOST_CLAUSES,
    MOST_FORBIDDEN,
    MOST_MESSAGES,
    MOST_REASONS,
    MOST_SIGNALS,
    MOST_USERS,
    AnswerId,
    Author,
    Body,
    ClauseId,
    ClauseText,
    Found,
    NoNul,
    Scope,
    SignalId,
    Tenant,
    UserId,
)
from popi.profiles.user_id import LONGEST_ID
from popi.signals.types import Signal, TargetPair


def _ids_fit(signals: list[Signal]) -> None:
    for index, signal in enumerate(signals):
        if signal.id is not None and not (0 < len(signal.id) <= LONGEST_ID and "\x00" not in signal.id):
            raise ValueError(f"signals[{index}].id: must have 1 to {LONGEST_ID} characters, none of them NUL")


def _bounded(value: Any) -> Any:
    """Looks at a signal before it is validated. As a call of Python it also lets other threads run between two signals:
    validating a long list is else one call of C, and the event loop would wait for all of it.
    """
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if isinstance(prompt, list) and len(prompt) > MOST_MESSAGES:
        raise ValueError(f"prompt: has more than {MOST_MESSAGES:,} messages")
    return value


Sent = Annotated[Signal, BeforeValidator(_bounded)]
SentPair = Annotated[TargetPair, BeforeValidator(_bounded)]


class SignalsUpload(Body):
    """Signals of one user, oldest first."""

    signals: list[Sent] = Field(fail_fast=True, min_length=1, max_length=MOST_SIGNALS)
    """Those whose id is known already change nothing. Without an id, a signal's content is its id."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        _ids_fit(self.signals)
        return self


class ClauseEdit(Body):
    """One statement of a summary, as its author wants it."""

    id: ClauseId | None = None
    """Of a clause that is kept or changed: its id. Without one it gets a new id."""
    text: ClauseText
    locked: bool = False
    """Every renewal keeps it, word for word."""
    signals: list[SignalId] = Field(fail_fast=True, default_factory=list, max_length=MOST_REASONS)
    """Ids of the signals that it rests on."""
    found: Found | None = None
    """As the summary showed it; has no effect."""
    author: Author | None = None
    """Likewise."""


class ForbiddenEdit(Body):
    """What a summary must not say again."""

    id: ClauseId | None = None
    """Of an entry that is kept. Without one it gets a new id."""
    text: ClauseText | None = None
    """The user's own words: kept apart, for them to see. May be left out where `id` names an entry that is there."""
    tell: bool | None = None
    """Whether the model that writes summaries may be told it, to avoid it in other words as well. Left out, an entry
    stays as it is; a new one is not told."""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.id is None and self.text is None:
            raise ValueError("give text, or the id of an entry that is there")
        return self


class SummaryEdit(Body):
    """A summary, as text or in clauses: one of the two, or neither to change `forbidden` alone. An empty one
    personalises nothing."""

    text: Annotated[NoNul, StringConstraints(max_length=LONGEST_TEXT)] | None = None
    clauses: list[ClauseEdit] | None = Field(fail_fast=True, default=None, max_length=MOST_CLAUSES)
    forbidden: list[ForbiddenEdit] | None = Field(fail_fast=True, default=None, max_length=MOST_FORBIDDEN)
    """What no renewal may say again. Left out, what is forbidden stays so. Given alone, clauses that say it in the same
    words and are not locked go."""

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        neither = self.text is None and self.clauses is None
        if (neither and self.forbidden is None) or (self.text is not None and self.clauses is not None):
            raise ValueError("give either text or clauses, or forbidden alone")
        ids = [clause.id for clause in self.clauses or () if clause.id is not None]
        if len(ids) != len(set(ids)):
            raise ValueError("two clauses have the same id")
        for name, parts in (("clauses", self.clauses), ("forbidden", self.forbidden)):
            if sum(len(one.text or "") for one in parts or ()) > LONGEST_CLAUSES:
                raise ValueError(f"{name}: have more than {LONGEST_CLAUSES:,} characters together")
        return self


class Controls(Body):
    """A user's two switches. One that is left out stays as it is. They can be set before anything is known of the user,
    and hold for all that comes later."""

    use: bool | None = None
    """Use what is known: chats get the summary."""
    learn: bool | None = None
    """Learn: signals are stored, answers kept for feedback, summaries renewed. Off, none of that is done, whatever
    sends it."""

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if self.use is None and self.learn is None:
            raise ValueError("give use, learn or both")
        return self


class Pause(Body):
    """Both switches at once: paused, nothing is used or learned."""

    paused: bool


class Feedback(Body):
    """What a user did with an answer: one of thumbs, edit, replaced_by and rather_than."""

    answer: AnswerId
    """The answer: what its header `x-popi-answer-id` says. The `id` in its body is taken, too, where it fits one answer
    of this user."""
    thumbs: Literal["up", "down"] | None = None
    edit: Annotated[NoNul, StringConstraints(min_length=1, max_length=LONGEST_TEXT, pattern=r"\S")] | None = None
    """The answer as the user rewrote it."""
    replaced_by: AnswerId | None = None
    """The user asked for another answer, and kept that one."""
    rather_than: list[AnswerId] | None = Field(fail_fast=True, default=None, min_length=1, max_length=16)
    """The user picked this answer among others: those."""

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        told = [self.thumbs, self.edit, self.replaced_by, self.rather_than]
        if sum(one is not None for one in told) != 1:
            raise ValueError("give one of thumbs, edit, replaced_by and rather_than")
        if self.answer == self.replaced_by or self.answer in (self.rather_than or ()):
            raise ValueError("an answer is compared with itself")
        return self


class Rollback(Body):
    """Which version's content is to be current again."""

    version: int = Field(ge=1, le=2**62)


class ImportedUser(Body):
    """A user as a line of popi's JSONL; what `export?format=jsonl` gives can be imported."""

    user_id: UserId
    signals: list[Sent] = Field(fail_fast=True, default_factory=list, max_length=100 * MOST_SIGNALS)
    targets: list[SentPair] = Field(fail_fast=True, default_factory=list, max_length=100 * MOST_SIGNALS)
    """Target pairs are kept as preference pairs, behind the signals."""
    summary: SummaryEdit | None = None
    """Taken where the user has no summary yet."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        _ids_fit(self.signals)
        return self


class Import(Body):
    """Users to add, or to add signals to: all of them or, where one is wrong, none."""

    users: list[ImportedUser] = Field(fail_fast=True, min_length=1, max_length=MOST_USERS)


class Merge(Body):
    """Which user is to become part of the one that the path names."""

    source: UserId
    """Whose signals, summaries and the rest are moved; this user is gone afterwards."""


class NewKey(Body):
    """A key to make."""

    scope: Scope
    tenant: Tenant | None = None
    """Whose key; made with its first key. Left out: the tenant in x-popi-tenant, or the caller's own."""
    user_id: UserId | None = None
    """Of a user key, and of no other: its user."""

    @model_validator(mode="after")
    def _user_of_a_user_key(self) -> Self:
        if (self.scope == "user") != (self.user_id is not None):
            raise ValueError("a key of scope user needs its user_id, and only such a key takes one")
        return self
