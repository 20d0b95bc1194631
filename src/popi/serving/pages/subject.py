"""The profile that a request is about, and who is asking."""

from dataclasses import dataclass
from urllib.parse import quote, unquote

from starlette.requests import Request

from popi.errors import DataError
from popi.profiles.fields import Author
from popi.profiles.user_id import normal_user_id
from popi.serving.api.stored import NotFound
from popi.serving.pages.sessions import Session


class NoSession(Exception):
    """No one is signed in, or the form did not come from one of our pages."""


@dataclass(frozen=True)
class Subject:
    """The profile that a request is about.

    Attributes:
        tenant: the tenant.
        user_id: the user.
        base: the path prefix of the profile's pages.
        session: who is asking.
        admin: whether that is the team.
    """

    tenant: str
    user_id: str
    base: str
    session: Session
    admin: bool

    @property
    def author(self) -> Author:
        """The author to record for changes."""
        return "admin" if self.admin else "user"


def admin_path(tenant: str, user_id: str) -> str:
    """The path of a user's profile on the team's pages."""
    return f"/admin/users/{quote(tenant, safe='')}/{quote(user_id, safe='')}"


def subject_of(request: Request, session: Session) -> tuple[Subject, str]:
    """The subject of a request, and the name of the requested page.

    A user's session can only reach that user's profile, whatever the path.

    Raises:
        NotFound: the path does not name a profile.
    """
    if session.user_id is not None:
        rest = request.url.path.removeprefix("/me").removeprefix("/")
        return Subject(session.tenant, session.user_id, "/me", session, False), rest
    # The raw path: a slash within a user id stays %2F and separates nothing.
    raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
    parts = raw.split(b"?", 1)[0].decode("latin-1").split("/")  # "", "admin", "users", tenant, id, rest
    if len(parts) not in (5, 6) or parts[2] != "users":
        raise NotFound("no_page", "there is no such page")
    try:
        tenant, user_id = unquote(parts[3], errors="strict"), normal_user_id(unquote(parts[4], errors="strict"))
    except (UnicodeDecodeError, DataError):
        raise NotFound("no_user", "there is no such user") from None
    return Subject(tenant, user_id, admin_path(tenant, user_id), session, True), parts[5] if len(parts) == 6 else ""
