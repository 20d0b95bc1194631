"""Answers of the profile API."""

from datetime import UTC, datetime
from typing import Generic, Literal

from popi.profiles.fields import Answer, Author, Found, Item, Scope
from popi.signals.types import Signal

EXPORT_FORMAT = 1
"""Version of an exported profile (docs/compatibility.md); raised where a reader of the one before would misread it."""


class SignalsAnswer(Answer):
    """What became of an upload; it is on disk."""

    ids: list[str]
    """The ids of all signals sent, in their order."""
    added: int
    known: int
    """How many were there already."""
    not_learned: int = 0
    """How many were not stored, because the user has switched learning off."""


class Clause(Answer):
    """One statement of a summary."""

    id: str
    text: str
    locked: bool
    signals: list[str]
    """Ids of the signals that it rests on, where that is known."""
    found: Found | None
    """How they were found: each signal left out and the clause scored again (leave_one_out); or the model that wrote it
    named them (named). Null: by nobody."""
    author: Author
    """Whose words these are: the inference model's, the user's, or the team's."""


class ForbiddenClause(Answer):
    """What no renewal may say again."""

    id: str
    text: str | None
    """The user's own words; null once they were deleted: a hash of them is kept."""
    tell: bool
    """The model that writes summaries may be told it."""


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
    """How the renewal of a stale summary stands."""

    state: Literal["waiting", "running", "failed"]
    due_at: datetime
    attempts: int
    error: str | None
    """Of the last attempt, where it failed: what kind of failure."""
    held_by: Literal["user_quota", "key_quota", "tenant_quota"] | None
    """The quota that a waiting renewal is over."""


class UserAnswer(Answer):
    """One user."""

    user_id: str
    created_at: datetime
    signals: int
    """How many signals there are."""
    last_signal_at: datetime | None
    summary: SummaryAnswer | None
    renewal: Renewal | None
    """None: the summary has seen every signal."""
    controls: "ControlsAnswer"
    paused: bool
    """What is known is not used: chats don't get the summary."""


class ControlsAnswer(Answer):
    """How a user's two switches stand."""

    use: bool
    """What is known of them is used."""
    learn: bool
    """What they do is learned from."""


class PauseAnswer(Answer):
    """Whether what is known is used now."""

    paused: bool


class LinkAnswer(Answer):
    """A link to the user's own page. Who has it is taken for the user until it ends: hand it to them alone."""

    url: str
    expires_at: datetime


class AnswerKept(Answer):
    """An answer that feedback may still name (see docs/profiles.md)."""

    id: str
    """As `x-popi-answer-id` said."""
    upstream_id: str
    """As the answer itself said; empty where it said none."""
    prompt: str
    answer: str


class ExportAnswer(Answer):
    """Everything that is stored of a user."""

    format: int = EXPORT_FORMAT
    """The version of this format (docs/compatibility.md)."""
    user_id: str
    created_at: datetime
    signals: list[Signal]
    versions: list[SummaryAnswer]
    """Newest first; the first is current."""
    controls: ControlsAnswer
    paused: bool
    answers: list[AnswerKept]
    """Kept for feedback, where the app opted in."""


class ImportAnswer(Answer):
    """What became of an import; it is on disk."""

    users: int
    added: int
    """Signals that are new."""
    known: int
    summaries: int
    """Summaries that were taken."""
    not_learned: int = 0
    """Users whose signals were not stored, because they have switched learning off."""


class MergeAnswer(Answer):
    """What moved from one user to the other; it is on disk."""

    signals: int
    """How many signals are new to the user who stays."""
    known: int
    """How many that user had already."""
    summary_versions: int
    answers: int
    """Kept for feedback."""
    keys: int
    """The other user's own keys, which are this user's now."""
    user: UserAnswer
    """The user who stays."""


class Removed(Answer):
    """How many of each were removed."""

    users: int
    signals: int
    summary_versions: int
    renewal_jobs: int
    answers: int
    """Kept for feedback."""
    sessions: int
    """On the user's page."""
    keys: int
    """The user's own keys."""


class Receipt(Answer):
    """What an erasure removed."""

    erased_at: datetime
    removed: Removed
    bytes: Literal["overwritten", "scheduled", "left_to_postgresql"]
    """overwritten: no file of the store holds them any more. scheduled: they will be within minutes (a large SQLite
    file, or one that is being read). left_to_postgresql: no query finds them; see docs/serving.md."""


class Deleted(Answer):
    """What was deleted from every table, and from every version of the summary."""

    signals: int
    clauses: int
    """Statements, each counted once however many versions it stood in."""
    versions: int
    """Versions that are gone."""
    rewritten: int
    """Versions that say less now."""
    answers: int
    """Kept for feedback."""
    version: int
    """The current version now; 0: there is no summary."""
    bytes: Literal["overwritten", "scheduled", "left_to_postgresql"]
    """As a receipt says it."""


class Page(Answer, Generic[Item]):
    """A part of a list."""

    items: list[Item]
    next: str | None
    """`after` of the next page; null: this is the last."""


class AuditEntry(Answer):
    """Somebody read or changed something."""

    entry: str
    """Names the entry; entries are in the order of time."""
    at: datetime
    actor: str
    """`key:` and a key's id, `page` of a user on their own page, `oidc:` and a name, `cli:` and an account."""
    role: Literal["admin", "viewer", "app", "user", "operator"]
    way: Literal["api", "page", "cli"]
    action: str
    tenant: str
    user_id: str | None
    """The user; null where it is about none in particular, or about one who is not there (any more)."""
    user_hash: str | None
    """A keyed hash of the user's id, which outlasts an erasure."""


class KeyAnswer(Answer):
    """A key, without its text."""

    key_id: str
    scope: Scope
    tenant: str
    user_id: str | None
    created_at: datetime
    revoked_at: datetime | None


class NewKeyAnswer(KeyAnswer):
    """A key that was made."""

    key: str
    """Its text, shown this once: the store keeps a hash."""


class Health(Answer):
    """The gateway is up."""

    status: Literal["ok"] = "ok"


class InferenceHealth(Answer):
    """The LLM that writes summaries, by its latest answer."""

    state: Literal["unchecked", "ok", "failing"]
    reason: str | None
    """Why it fails."""


class Ready(Health):
    """The gateway is up, and the store answers."""

    inference: InferenceHealth | None
    """For information: chats go on without it. Null: this process renews no summaries by an LLM behind an API."""


class ErrorWords(Answer):
    """What was wrong: a word for programs, a sentence for people."""

    code: str
    message: str


class ErrorAnswer(Answer):
    """Why a request was refused."""

    error: ErrorWords


def moment(seconds: float) -> datetime:
    """Seconds since 1970 as a time with its zone."""
    return datetime.fromtimestamp(seconds, UTC)
