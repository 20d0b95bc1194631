"""Commands of `popi keys`: create, list, revoke."""

import json
from typing import Annotated

import typer

from popi.cli.shared import console, out
from popi.cli.store import STORE, StoreUrl, Tenant, moment, need_serving, open_store

app = typer.Typer(help="Create, list and revoke keys of the gateway.", no_args_is_help=True)


@app.command("create")
def keys_create(
    scope: Annotated[
        str, typer.Option(help="app: acts for all users of its tenant; user: one user's profile; admin: everything.")
    ],
    tenant: Tenant = "default",
    user: Annotated[str | None, typer.Option(help="With --scope user: the user's id.")] = None,
    store: StoreUrl = STORE,
) -> None:
    """Create a key, and its tenant if it is new. The key is shown only once: the store keeps a hash."""
    need_serving()
    from popi.serving.keys import create

    if scope not in ("admin", "app", "user"):
        raise typer.BadParameter(f"--scope must be admin, app or user; got {scope!r}")
    key, record, new = create(open_store(store), scope, tenant, user)  # type: ignore[arg-type]
    owner = f" of user {user}" if user is not None else ""
    console.print(
        f"{scope} key {record.key_id}{owner} for {'the new ' if new else ''}tenant {tenant}; it is shown only once:",
        highlight=False,
        markup=False,
    )
    out.print(key, highlight=False, markup=False)


@app.command("list")
def keys_list(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.", metavar="NAME")] = None,
    store: StoreUrl = STORE,
) -> None:
    """List keys, one JSON object per line."""
    need_serving()
    from popi.serving.store import keys

    for record in open_store(store).read(keys.list_keys, tenant):
        revoked = None if record.revoked_at is None else moment(record.revoked_at)
        row = {"key_id": record.key_id, "scope": record.scope, "tenant": record.tenant, "user_id": record.user_id}
        print(json.dumps(row | {"created_at": moment(record.created_at), "revoked_at": revoked}, ensure_ascii=False))


@app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, from `popi keys list`.")],
    store: StoreUrl = STORE,
) -> None:
    """Revoke a key. When this returns, running gateways refuse it.

    Keep the line on stderr with the gateway's log, for `popi replay`.
    """
    need_serving()
    from popi.serving.keys import log_revoked
    from popi.serving.proxy.logs import on_stderr
    from popi.serving.store import keys
    from popi.serving.store.changes import wait_for_all

    database = open_store(store)
    record = database.write(lambda connection: keys.revoke(connection, key_id, database.now(connection)))
    with on_stderr():
        log_revoked(record)
        wait_for_all(database)
    console.print(f"{record.scope} key {key_id} is revoked", highlight=False, markup=False)
