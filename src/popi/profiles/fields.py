"""What bodies and answers of the profile API are made of: ids, bounds, and a summary's parts as they are stored."""

from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    StringConstraints,
    WithJsonSchema,
)

from popi.errors import DataError
from popi.profiles.user_id import LONGEST_ID, normal_user_id

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
"""How the signals behind a clause were found: by leaving each out and scoring again, or the model named them."""
Scope = Literal["admin", "app", "user"]
"""Of a key: admin: everything; app: speaks for the users of its tenant; user: one user's own profile alone."""


class Body(BaseModel):
    """A body that was sent: a field that is not here is refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Answer(BaseModel):
    """An answer: newer servers may add fields."""

    model_config = ConfigDict(use_attribute_docstrings=True)


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
