"""What commands on the gateway's store share: its options, opening it, and notes for the audit log."""

import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from popi.errors import DataError, ModelError

if TYPE_CHECKING:
    from popi.serving.store.database import Database

STORE = "sqlite:///popi.db"
StoreUrl = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="POPI_STORE",
        help="Where users are kept: sqlite:///FILE or postgresql://…; with a password, rather in POPI_STORE.",
        metavar="URL",
    ),
]
Tenant = Annotated[str, typer.Option(help="Whose users: the name of an app or team.")]


def need_serving() -> None:
    """Refuse, with what to install, where the gateway's packages are missing."""
    if any(importlib.util.find_spec(name) is None for name in ("sqlalchemy", "fastapi", "uvicorn", "httptools")):
        raise ModelError("this command needs the gateway's packages; install them with: pip install 'popi[serve]'")


def open_store(store: str) -> "Database":
    """The store at a URL."""
    from popi.serving.store.database import Database

    return Database.open(store)


def open_as_operator(store: str) -> "Database":
    """The same; what is read or changed from here on is noted in the audit log, under the account of this machine."""
    import getpass

    from popi.serving.store.audit import ACTOR, Actor

    try:
        account = getpass.getuser()
    except (KeyError, OSError):  # in a container, an account may have no name
        account = str(os.getuid())
    ACTOR.set(Actor(f"cli:{account}", "operator", "cli"))
    return open_store(store)


def saw(database: "Database", action: str, tenant: str, user_ids: Sequence[str] = ("",)) -> None:
    """Note what is about to be read."""
    from popi.serving.store.audit import ACTOR, Seen, note_seen

    actor = ACTOR.get()
    assert actor is not None, "opened by _open_as_operator"
    seen = [Seen(actor, action, tenant, one) for one in user_ids]
    database.write(lambda connection: note_seen(connection, database.now(connection), seen))


def each_noted(database: "Database", action: str, tenant: str, user_ids: Iterable[str]) -> Iterator[str]:
    """Users one after another, each noted before."""
    left = iter(user_ids)
    while some := list(islice(left, 500)):
        saw(database, action, tenant, some)
        yield from some


def user_ids_of(database: "Database", tenant: str) -> Iterator[str]:
    """The ids of a tenant's users, read page by page."""
    from popi.serving.store import users

    after = None
    while page := database.read(users.listed, tenant, after):
        yield from page
        after = page[-1]


def no_user(user_id: str, tenant: str) -> DataError:
    """The error about a user who is not in the store."""
    return DataError(f"tenant {tenant!r} has no user {user_id!r}; `popi users list` shows those that it has")


def moment(seconds: float) -> str:
    """Seconds since 1970 in ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
