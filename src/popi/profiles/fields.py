"""Building blocks of the profile API's models: ids, limits, and the stored parts of a summary."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from popi.errors import DataError
from popi.profiles.user_id import LONGEST_ID, normal_user_id

LONGEST_CLAUSE, MAX_CLAUSES, LONGEST_TEXT = 2_000, 100, 20_000
MAX_FORBIDDEN = 100
LONGEST_CLAUSES = 2 * LONGEST_TEXT
"""Maximum total characters of a summary's clauses, and of all forbidden statements. It is above `LONGEST_TEXT` because
splitting a text into clauses can make it longer."""
MAX_REASONS = 100
MAX_SIGNALS, MAX_USERS, MAX_MESSAGES = 1_000, 10_000, 1_000

AnswerId = Annotated[str, StringConstraints(min_length=1, max_length=300, pattern=r"^[^\x00]*$")]
SignalId = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_ID, pattern=r"^[^\x00]*$")]
NoNul = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""Text without NUL, which PostgreSQL does not allow."""
ANY_ID = {"minLength": 1, "maxLength": LONGEST_ID, "pattern": r"^[^\x00]*\S[^\x00]*$"}
"""What a JSON Schema can express about user ids; `normal_user_id` checks the rest."""


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
Attribution = Literal["leave_one_out", "named"]
"""How a clause's signals were determined: by scoring it without each signal, or named by the model."""
Scope = Literal["admin", "app", "user"]
"""A key's scope. admin: everything; app: acts for all users of its tenant; user: one user's profile."""


class Body(BaseModel):
    """A request body; unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Answer(BaseModel):
    """A response; newer servers may add fields."""

    model_config = ConfigDict(use_attribute_docstrings=True)


def under_present_names(values: Any, **renamed: str) -> Any:
    """The fields of a model, of which some are stored, or were exported, under an earlier name: `present="earlier"`."""
    if not isinstance(values, dict):
        return values
    present = {earlier: name for name, earlier in renamed.items() if name not in values}
    return {present.get(name, name): value for name, value in values.items()}


class StoredClause(BaseModel):
    """One statement of a summary, as stored."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: str
    text: str
    locked: bool = False
    signals: tuple[str, ...] = ()
    author: Author = "model"
    attribution: Attribution | None = None

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, values: Any) -> Any:
        return under_present_names(values, attribution="found")


class Forbidden(BaseModel):
    """A forbidden statement, as stored in a summary version (popi.profiles.forbidden).

    Attributes:
        id: the entry's id.
        hash: HMAC of its normal form, in hex; empty if there is `text`.
        salt: the hash's salt.
        length: number of words.
        send_to_model: whether the user allows sending it to the model that writes summaries.
        text: the words themselves, in versions older than the hashes.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: str
    hash: str = ""
    salt: str = ""
    length: int = 0
    send_to_model: bool = False
    text: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, values: Any) -> Any:
        return under_present_names(values, send_to_model="tell")
