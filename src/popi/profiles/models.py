"""Bodies and answers of the profile API. A body with a field that is not here is refused."""

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from popi.errors import DataError
from popi.profiles.user_id import LONGEST_ID, normal_user_id
from popi.signals.types import Signal, TargetPair

LONGEST_CLAUSE, MOST_CLAUSES, LONGEST_TEXT = 2_000, 100, 20_000
MOST_FORBIDDEN = 100
LONGEST_CLAUSES = 2 * LONGEST_TEXT
"""Characters of all clauses of a summary, and of all that is forbidden. Above `LONGEST_TEXT`: a text that was split
into clauses can be longer than it was."""
MOST_REASONS = 100
MOST_SIGNALS, MOST_USERS, MOST_MESSAGES = 1_000, 10_000, 1_000

AnswerId = Annotated[str, StringConstraints(min_length=1, max_length=300, pattern=r"^[^\x00]*$")]
SignalId = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_ID, pattern=r"^[^\x00]*$")]
NoNul = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""PostgreSQL's text holds no NUL."""
ANY_ID = {"minLength": 1, "maxLength": LONGEST_ID, "pattern": r"^[^\x00]*\S[^\x00]*$"}
"""What a JSON Schema can say of a user id; `normal_user_id` says the rest."""


def _normal(user_id: str) -> str:
    try:
        return normal_user_id(user_id)
    except DataError as error:
        raise ValueError(str(error)) from None


UserId = Annotated[str, AfterValidator(_normal), WithJsonSchema({"type": "string", **ANY_ID})]
Tenant = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
ClauseId = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
ClauseText = Annotated[NoNul, StringConstraints(min_length=1, max_length=LONGEST_CLAUSE, pattern=r"\S")]
Item = TypeVar("Item")
Author = Literal["model", "user", "admin"]
Found = Literal["leave_one_out", "named"]
"""How the signals behind a clause were found: by leaving each out and scoring anew, or the model named them."""
Scope = Literal["admin", "app", "user"]
"""Of a key: admin: everything; app: speaks for the users of its tenant; user: one user's own profile alone."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class _Answer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


# -- what is stored -------------------------------------------------------------------------------------------------


class StoredClause(BaseModel):
    """One statement of a summary, as it is stored."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: str
    text: str
    locked: bool = False
    signals: tuple[str, ...] = ()
    author: Author = "model"
    found: Found | None = None


class Forbidden(BaseModel):
    """What a summary must not say again, as a version of it holds it (popi.profiles.forbidden).

    Attributes:
        id: its name.
        hash: HMAC of its normal form, in hex; empty where `text` is there.
        salt: of the hash.
        length: in words.
        tell: the user allows that the model which writes summaries is told it.
        text: the words themselves, in versions from before there were hashes.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: str
    hash: str = ""
    salt: str = ""
    length: int = 0
    tell: bool = False
    text: str | None = None


# -- bodies ---------------------------------------------------------------------------------------------------------


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


class SignalsUpload(_Body):
    """Signals of one user, oldest first."""

    signals: list[Sent] = Field(fail_fast=True, min_length=1, max_length=MOST_SIGNALS)
    """Those whose id is known already change nothing. Without an id, a signal's content is its id."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        _ids_fit(self.signals)
        return self


class ClauseEdit(_Body):
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


class ForbiddenEdit(_Body):
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


class SummaryEdit(_Body):
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


class Controls(_Body):
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


class Pause(_Body):
    """Both switches at once: paused, nothing is used or learned."""

    paused: bool


class Feedback(_Body):
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


class Rollback(_Body):
    """Which version's content is to be current again."""

    version: int = Field(ge=1, le=2**62)


class ImportedUser(_Body):
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


class Import(_Body):
    """Users to add, or to add signals to: all of them or, where one is wrong, none."""

    users: list[ImportedUser] = Field(fail_fast=True, min_length=1, max_length=MOST_USERS)


class Merge(_Body):
    """Which user is to become part of the one that the path names."""

    source: UserId
    """Whose signals, summaries and the rest are moved; this user is gone afterwards."""


class NewKey(_Body):
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


# -- answers --------------------------------------------------------------------------------------------------------


class SignalsAnswer(_Answer):
    """What became of an upload; it is on disk."""

    ids: list[str]
    """The ids of all signals sent, in their order."""
    added: int
    known: int
    """How many were there already."""
    not_learned: int = 0
    """How many were not stored, because the user has switched learning off."""


class Clause(_Answer):
    """One statement of a summary."""

    id: str
    text: str
    locked: bool
    signals: list[str]
    """Ids of the signals that it rests on, where that is known."""
    found: Found | None
    """How they were found: each signal left out and the clause scored anew (leave_one_out); or the model that wrote it
    named them (named). Null: by nobody."""
    author: Author
    """Whose words these are: the inference model's, the user's, or the team's."""


class ForbiddenClause(_Answer):
    """What no renewal may say again."""

    id: str
    text: str | None
    """The user's own words; null once they were deleted: a hash of them is kept."""
    tell: bool
    """The model that writes summaries may be told it."""


class SummaryAnswer(_Answer):
    """A version of a summary."""

    version: int
    text: str
    clauses: list[Clause]
    updated_at: datetime
    author: Author
    forbidden: list[ForbiddenClause]


class VersionsAnswer(_Answer):
    """A user's versions, newest first."""

    versions: list[SummaryAnswer]


class Renewal(_Answer):
    """How the renewal of a stale summary stands."""

    state: Literal["waiting", "running", "failed"]
    due_at: datetime
    attempts: int
    error: str | None
    """Of the last attempt, where it failed: what kind of failure."""
    held_by: Literal["user_quota", "key_quota", "tenant_quota"] | None
    """The quota that a waiting renewal is over."""


class UserAnswer(_Answer):
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


class ControlsAnswer(_Answer):
    """How a user's two switches stand."""

    use: bool
    """What is known of them is used."""
    learn: bool
    """What they do is learned from."""


class PauseAnswer(_Answer):
    """Whether what is known is used now."""

    paused: bool


class LinkAnswer(_Answer):
    """A link to the user's own page. Who has it is taken for the user until it ends: hand it to them alone."""

    url: str
    expires_at: datetime


class AnswerKept(_Answer):
    """An answer that feedback may still name (see docs/profiles.md)."""

    id: str
    """As `x-popi-answer-id` said."""
    upstream_id: str
    """As the answer itself said; empty where it said none."""
    prompt: str
    answer: str


class ExportAnswer(_Answer):
    """Everything that is stored of a user."""

    user_id: str
    created_at: datetime
    signals: list[Signal]
    versions: list[SummaryAnswer]
    """Newest first; the first is current."""
    controls: ControlsAnswer
    paused: bool
    answers: list[AnswerKept]
    """Kept for feedback, where the app opted in."""


class ImportAnswer(_Answer):
    """What became of an import; it is on disk."""

    users: int
    added: int
    """Signals that are new."""
    known: int
    summaries: int
    """Summaries that were taken."""
    not_learned: int = 0
    """Users of whom nothing was taken, because they have switched learning off."""


class MergeAnswer(_Answer):
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


class Removed(_Answer):
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


class Receipt(_Answer):
    """What an erasure removed."""

    erased_at: datetime
    removed: Removed
    bytes: Literal["overwritten", "scheduled", "left_to_postgresql"]
    """overwritten: no file of the store holds them any more. scheduled: they will be within minutes (a large SQLite
    file, or one that is being read). left_to_postgresql: no query finds them; see docs/serving.md."""


class Deleted(_Answer):
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


class Page(_Answer, Generic[Item]):
    """A part of a list."""

    items: list[Item]
    next: str | None
    """`after` of the next page; null: this is the last."""


class AuditEntry(_Answer):
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


class KeyAnswer(_Answer):
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


class Health(_Answer):
    """The gateway is up."""

    status: Literal["ok"] = "ok"


class InferenceHealth(_Answer):
    """The LLM that writes summaries, by its latest answer."""

    state: Literal["unchecked", "ok", "failing"]
    reason: str | None
    """Why it fails."""


class Ready(Health):
    """The gateway is up, and the store answers."""

    inference: InferenceHealth | None
    """For information: chats go on without it. Null: this process renews no summaries by an LLM behind an API."""


class ErrorWords(_Answer):
    """What was wrong: a word for programs, a sentence for people."""

    code: str
    message: str


class ErrorAnswer(_Answer):
    """Why a request was refused."""

    error: ErrorWords


def moment(seconds: float) -> datetime:
    """Seconds since 1970 as a time with its zone."""
    return datetime.fromtimestamp(seconds, UTC)
