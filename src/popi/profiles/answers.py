"""Responses of the profile API."""

from datetime import UTC, datetime
from typing import Generic, Literal

from popi.profiles.fields import Answer, Attribution, Author, Item, Scope
from popi.signals.types import Signal

EXPORT_FORMAT = 1
"""Format version of an exported profile (docs/compatibility.md); incremented if older readers would misread it."""


class SignalsAnswer(Answer):
    """The result of an upload, which is now on disk."""

    ids: list[str]
    """Ids of all uploaded signals, in order."""
    added: int
    duplicates: int
    """Number of signals that were already stored."""
    ignored: int = 0
    """Number of signals that were not stored because the user switched learning off."""


class Clause(Answer):
    """One statement of a summary."""

    id: str
    text: str
    locked: bool
    signals: list[str]
    """Ids of the signals that it rests on, if known."""
    attribution: Attribution | None
    """How those signals were determined: by scoring the clause without each signal (leave_one_out), or named by the
    model that wrote it (named). Null if unknown."""
    author: Author
    """Who wrote it: the inference model, the user, or the team."""


class ForbiddenClause(Answer):
    """A statement that no renewal may repeat."""

    id: str
    text: str | None
    """The user's own words; null once they are deleted, when only a hash remains."""
    send_to_model: bool
    """Whether it may be sent to the model that writes summaries."""


class SummaryAnswer(Answer):
    """A version of a summary."""

    version: int
    text: str
    clauses: list[Clause]
    updated_at: datetime
    author: Author
    forbidden: list[ForbiddenClause]


class VersionsAnswer(Answer):
    """A user's versions, newest first."""

    versions: list[SummaryAnswer]


class Renewal(Answer):
    """The state of a stale summary's renewal."""

    state: Literal["waiting", "running", "failed"]
    due_at: datetime
    attempts: int
    error: str | None
    """The kind of error, if the last attempt failed."""
    held_by: Literal["user_quota", "key_quota", "tenant_quota"] | None
    """The quota that a waiting renewal has exceeded."""


class UserAnswer(Answer):
    """One user."""

    user_id: str
    created_at: datetime
    signals: int
    """Number of stored signals."""
    last_signal_at: datetime | None
    summary: SummaryAnswer | None
    renewal: Renewal | None
    """Null if the summary is up to date."""
    controls: "ControlsAnswer"
    paused: bool
    """Whether chats are answered without the summary."""


class ControlsAnswer(Answer):
    """The state of a user's two switches."""

    use: bool
    """Whether chats get the summary."""
    learn: bool
    """Whether popi learns from the user's behaviour."""


class PauseAnswer(Answer):
    """Whether personalisation is paused."""

    paused: bool


class LinkAnswer(Answer):
    """A link to the user's own page. Until it expires, it signs anyone in as the user: give it only to them."""

    url: str
    expires_at: datetime


class CapturedAnswer(Answer):
    """An answer that feedback can still refer to (see docs/profiles.md)."""

    id: str
    """The id from the header `x-popi-answer-id`."""
    upstream_id: str
    """The id in the answer itself; empty if it has none."""
    prompt: str
    answer: str


class ExportAnswer(Answer):
    """Everything that is stored about a user."""

    format: int = EXPORT_FORMAT
    """The format version (docs/compatibility.md)."""
    user_id: str
    created_at: datetime
    signals: list[Signal]
    versions: list[SummaryAnswer]
    """Newest first; the first is current."""
    controls: ControlsAnswer
    paused: bool
    answers: list[CapturedAnswer]
    """Stored for feedback, if the app opted in."""


class ImportAnswer(Answer):
    """The result of an import, which is now on disk."""

    users: int
    added: int
    """Number of new signals."""
    duplicates: int
    """Number of signals that were already stored."""
    summaries: int
    """Number of imported summaries."""
    ignored_users: int = 0
    """Number of users whose signals were not stored because they switched learning off."""


class MergeAnswer(Answer):
    """What was moved from one user to the other; it is now on disk."""

    signals: int
    """Number of signals that are new to the remaining user."""
    duplicates: int
    """Number of signals that the remaining user already had."""
    summary_versions: int
    answers: int
    """Stored for feedback."""
    keys: int
    """User keys of the merged user, which now belong to the remaining one."""
    user: UserAnswer
    """The remaining user."""


class Removed(Answer):
    """How many rows of each kind were removed."""

    users: int
    signals: int
    summary_versions: int
    renewal_jobs: int
    answers: int
    """Stored for feedback."""
    sessions: int
    """Sessions on the user's page."""
    keys: int
    """The user's own keys."""


class Receipt(Answer):
    """What an erasure removed."""

    erased_at: datetime
    removed: Removed
    data_on_disk: Literal["overwritten", "scheduled", "left_to_postgresql"]
    """overwritten: no file of the store contains them any more. scheduled: they will be overwritten within minutes (a
    large SQLite file, or one that is being read). left_to_postgresql: no query finds them; see docs/serving.md."""


class Deleted(Answer):
    """What was deleted from every table and every version of the summary."""

    signals: int
    clauses: int
    """Number of statements, each counted once even if it was in several versions."""
    versions: int
    """Number of deleted versions."""
    rewritten: int
    """Number of versions that lost statements."""
    answers: int
    """Stored for feedback."""
    version: int
    """The current version now; 0 if there is no summary."""
    data_on_disk: Literal["overwritten", "scheduled", "left_to_postgresql"]
    """As in a receipt."""


class Page(Answer, Generic[Item]):
    """One page of a list."""

    items: list[Item]
    next: str | None
    """The next page's `after`; null on the last page."""


class AuditEntry(Answer):
    """A read or change of a user's data."""

    id: str
    """Ids sort by time."""
    at: datetime
    actor: str
    """`key:` and a key id, `page` for users on their own page, `oidc:` and a name, `cli:` and an account."""
    role: Literal["admin", "viewer", "app", "user", "operator"]
    channel: Literal["api", "page", "cli"]
    action: str
    tenant: str
    user_id: str | None
    """The user; null if the entry concerns no user in particular, or one who does not exist (any more)."""
    user_hash: str | None
    """A keyed hash of the user's id, which survives an erasure."""


class KeyAnswer(Answer):
    """A key, without its text."""

    key_id: str
    scope: Scope
    tenant: str
    user_id: str | None
    created_at: datetime
    revoked_at: datetime | None


class NewKeyAnswer(KeyAnswer):
    """A newly created key."""

    key: str
    """The key itself, shown only this once: the store keeps a hash."""


class Health(Answer):
    """The gateway is up."""

    status: Literal["ok"] = "ok"


class InferenceHealth(Answer):
    """The health of the LLM that writes summaries, from its latest answer."""

    state: Literal["unchecked", "ok", "failing"]
    reason: str | None
    """Why it fails."""


class Ready(Health):
    """The gateway is up, and the store answers."""

    inference: InferenceHealth | None
    """Informational: chats work without it. Null if this process does not renew summaries with an LLM behind an API."""


class ErrorDetail(Answer):
    """The error: a code for programs and a message for people."""

    code: str
    message: str


class ErrorAnswer(Answer):
    """Why a request was refused."""

    error: ErrorDetail


def moment(seconds: float) -> datetime:
    """Seconds since 1970 as a datetime in UTC."""
    return datetime.fromtimestamp(seconds, UTC)
