"""Every route of the profile API, once. The dispatcher, the checks of who may call, and OpenAPI all read this table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel

from popi.serving.interfaces import Scope
from popi.serving.profiles.models import (
    ExportAnswer,
    Feedback,
    Import,
    ImportAnswer,
    LinkAnswer,
    Pause,
    PauseAnswer,
    Receipt,
    Rollback,
    SignalsAnswer,
    SignalsUpload,
    SummaryAnswer,
    SummaryEdit,
    UserAnswer,
    VersionsAnswer,
)

Name = Literal[
    "add_signals",
    "import_users",
    "get_user",
    "erase_user",
    "get_summary",
    "put_summary",
    "get_versions",
    "rollback",
    "rebuild",
    "export",
    "pause",
    "feedback",
    "make_link",
]
MiB = 2**20


@dataclass(frozen=True)
class Route:
    """One method of one path.

    Attributes:
        name: of what it does; OpenAPI's operationId.
        method: of HTTP.
        path: with `{id}` for the user.
        about: in a sentence.
        answer: the body of the answer.
        body: the body of the request, if it takes one.
        query: parameters: what each may be, the first being what it is when left out.
        if_match: whether the header counts: `required` where there is a summary, `optional`, or not at all.
        scopes: of the keys that may call.
        refusals: statuses beyond those that every route may answer.
        most: bytes of a body.
    """

    name: Name
    method: Literal["GET", "PUT", "POST", "DELETE"]
    path: str
    about: str
    answer: type[BaseModel]
    body: type[BaseModel] | None = None
    query: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    if_match: Literal["required", "optional"] | None = None
    scopes: tuple[Scope, ...] = ("admin", "app", "user")
    refusals: tuple[int, ...] = ()
    most: int = 4 * MiB

    @property
    def parts(self) -> tuple[str, ...]:
        """`/users/{id}/summary` as ("{id}", "summary")."""
        return tuple(self.path.removeprefix("/users/").split("/"))


ROUTES = (
    Route(
        "import_users",
        "POST",
        "/users/import",
        "Add users, or signals to users: JSON, or JSONL with one user a line. All of them or none.",
        ImportAnswer,
        body=Import,
        scopes=("admin", "app"),
        most=16 * MiB,
    ),
    Route("get_user", "GET", "/users/{id}", "One user.", UserAnswer, refusals=(404,)),
    Route(
        "erase_user",
        "DELETE",
        "/users/{id}",
        "Erase a user: signals, summaries, renewals, their keys, and the bytes.",
        Receipt,
    ),
    Route(
        "add_signals",
        "POST",
        "/users/{id}/signals",
        "Add signals. Sending the same again changes nothing.",
        SignalsAnswer,
        body=SignalsUpload,
    ),
    Route("get_summary", "GET", "/users/{id}/summary", "The current summary.", SummaryAnswer, refusals=(404,)),
    Route(
        "put_summary",
        "PUT",
        "/users/{id}/summary",
        "Write a summary by hand. Where there is one, If-Match must name the version that was seen.",
        SummaryAnswer,
        body=SummaryEdit,
        if_match="required",
        refusals=(412, 428),
    ),
    Route(
        "get_versions",
        "GET",
        "/users/{id}/summary/versions",
        "The versions of a summary, newest first.",
        VersionsAnswer,
        refusals=(404,),
    ),
    Route(
        "rollback",
        "POST",
        "/users/{id}/summary/rollback",
        "Make an old version's content the newest version.",
        SummaryAnswer,
        body=Rollback,
        if_match="optional",
        refusals=(404, 412),
    ),
    Route(
        "rebuild",
        "POST",
        "/users/{id}/summary/rebuild",
        "Have the summary written anew from all signals, instead of renewed from those that came since.",
        UserAnswer,
        refusals=(404,),
    ),
    Route(
        "export",
        "GET",
        "/users/{id}/export",
        "Everything stored of a user as JSON; or (format=jsonl) as the line that `popi train` reads.",
        ExportAnswer,
        query={"format": ("json", "jsonl")},
        refusals=(404,),
    ),
    Route(
        "pause",
        "PUT",
        "/users/{id}/paused",
        "Pause a user's personalisation, or go on with it.",
        PauseAnswer,
        body=Pause,
        refusals=(404,),
    ),
    Route(
        "feedback",
        "POST",
        "/users/{id}/feedback",
        "What the user did with a proxied answer becomes a signal. For tenants that opted in to capture.",
        SignalsAnswer,
        body=Feedback,
        refusals=(404,),
    ),
    Route(
        "make_link",
        "POST",
        "/users/{id}/link",
        "Make a link that opens the user's page for a short time.",
        LinkAnswer,
        scopes=("admin", "app"),
    ),
)
EVERY = (400, 401, 403, 408, 413, 422, 429, 500, 503)
"""Statuses that any route may refuse with (408, 413 and 422 where there is a body)."""
