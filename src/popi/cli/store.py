"""Shared by the commands on the gateway's store: options, opening it, and audit log entries."""

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
        help="Database: sqlite:///FILE or postgresql://HOST/NAME. If the URL has a password, set POPI_STORE instead.",
        metavar="URL",
    ),
]
Tenant = Annotated[str, typer.Option(help="The tenant: the app or team whose users are meant.", metavar="NAME")]


def need_serving() -> None:
    """Raise a ModelError that says what to install if the gateway's packages are missing."""
    if any(importlib.util.find_spec(name) is None for name in ("sqlalchemy", "fastapi", "uvicorn", "httptools")):
        raise ModelError("this command needs the gateway's packages; install them with: pip install 'popi[serve]'")


def open_store(store: str) -> "Database":
    """Open the store at a URL."""
    from popi.serving.store.database import Database

    return Database.open(store)


def open_as_operator(store: str) -> "Database":
    """Open the store. From here on, the audit log attributes reads and changes to this machine's account."""
    import getpass

    from popi.serving.store.audit import ACTOR, Actor

    try:
        account = getpass.getuser()
    except (KeyError, OSError):  # in a container the account may have no name
        account = str(os.getuid())
    ACTOR.set(Actor(f"cli:{account}", "operator", "cli"))
    return open_store(store)


def note_read(database: "Database", action: str, tenant: str, user_ids: Sequence[str] = ("",)) -> None:
    """Record an upcoming read in the audit log."""
    from popi.serving.store.audit import ACTOR, Seen, note_seen

    actor = ACTOR.get()
    assert actor is not None, "open the store with open_as_operator"
    seen = [Seen(actor, action, tenant, one) for one in user_ids]
    database.write(lambda connection: note_seen(connection, database.now(connection), seen))


def noted(database: "Database", action: str, tenant: str, user_ids: Iterable[str]) -> Iterator[str]:
    """Yield user ids, recording each in the audit log first."""
    remaining = iter(user_ids)
    while batch := list(islice(remaining, 500)):
        note_read(database, action, tenant, batch)
        yield from batch


def user_ids_of(database: "Database", tenant: str) -> Iterator[str]:
    """Yield the ids of a tenant's users, read page by page."""
    from popi.serving.store import users

    after = None
    while page := database.read(users.list_ids, tenant, after):
        yield from page
        after = page[-1]


def no_user(user_id: str, tenant: str) -> DataError:
    """The error for a user who is not in the store."""
    return DataError(f"tenant {tenant!r} has no user {user_id!r}; `popi users list` lists its users")


def moment(seconds: float) -> str:
    """Seconds since 1970 in ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
