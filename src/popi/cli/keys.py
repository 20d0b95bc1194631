"""Commands about keys: keys create, keys list, keys revoke."""

import json
from typing import Annotated

import typer

from popi.cli.shared import console, out
from popi.cli.store import STORE, StoreUrl, Tenant, moment, need_serving, open_store

app = typer.Typer(help="Keys of the gateway: make, list, revoke.", no_args_is_help=True)


@app.command("create")
def keys_create(
    scope: Annotated[
        str, typer.Option(help="app: speaks for its tenant's users; user: one user's profile; admin: everything.")
    ],
    tenant: Tenant = "default",
    user: Annotated[str | None, typer.Option(help="Of a user key: the user's id.")] = None,
    store: StoreUrl = STORE,
) -> None:
    """Make a key, and its tenant if that is new. It is shown once: the store keeps a hash."""
    need_serving()
    from popi.serving.keys import create

    if scope not in ("admin", "app", "user"):
        raise typer.BadParameter(f"--scope must be admin, app or user; got {scope!r}")
    key, record, new = create(open_store(store), scope, tenant, user)  # type: ignore[arg-type]
    of = f" of user {user}" if user is not None else ""
    console.print(
        f"{scope} key {record.key_id}{of} for {'the new ' if new else ''}tenant {tenant}; it is shown this once:",
        highlight=False,
        markup=False,
    )
    out.print(key, highlight=False, markup=False)


@app.command("list")
def keys_list(
    tenant: Annotated[str | None, typer.Option(help="Of one tenant alone.")] = None, store: StoreUrl = STORE
) -> None:
    """List keys, one JSON object a line."""
    need_serving()
    from popi.serving.store import keys

    for record in open_store(store).read(keys.listed, tenant):
        revoked = None if record.revoked_at is None else moment(record.revoked_at)
        row = {"key_id": record.key_id, "scope": record.scope, "tenant": record.tenant, "user_id": record.user_id}
        print(json.dumps(row | {"created_at": moment(record.created_at), "revoked_at": revoked}, ensure_ascii=False))


@app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `popi keys list` shows it.")],
    store: StoreUrl = STORE,
) -> None:
    """Revoke a key: gateways that run refuse it within a second or two.

    The line on stderr is for `popi replay`, as that of the gateway's log: keep it with the log."""
    need_serving()
    from popi.serving.keys import log_revoked
    from popi.serving.proxy.logs import on_stderr
    from popi.serving.store import keys

    database = open_store(store)
    record = database.write(lambda connection: keys.revoke(connection, key_id, database.now(connection)))
    with on_stderr():
        log_revoked(record)
    console.print(f"{record.scope} key {key_id} is revoked", highlight=False, markup=False)
