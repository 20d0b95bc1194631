"""Commands of `popi users`: list, show, export, controls, delete, rebuild, renew, merge, erase."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from popi.cli.shared import Force, console
from popi.cli.store import (
    STORE,
    StoreUrl,
    Tenant,
    need_serving,
    no_user,
    note_read,
    noted,
    open_as_operator,
    user_ids_of,
)
from popi.errors import DataError
from popi.profiles.user_id import normal_user_id

app = typer.Typer(help="List, show, export, change and erase users of the gateway.", no_args_is_help=True)


@app.command("list")
def users_list(tenant: Tenant = "default", store: StoreUrl = STORE) -> None:
    """List a tenant's user ids as JSON strings, one per line."""
    need_serving()
    database = open_as_operator(store)
    note_read(database, "list", tenant)
    for user_id in user_ids_of(database, tenant):
        print(json.dumps(user_id, ensure_ascii=False))


@app.command("show")
def users_show(
    user_id: Annotated[str, typer.Argument(help="The user.")], tenant: Tenant = "default", store: StoreUrl = STORE
) -> None:
    """Show a user's signals and all versions of the summary, as JSON."""
    need_serving()
    from popi.serving.api.stored import NotFound, exported

    database = open_as_operator(store)
    note_read(database, "read", tenant, [normal_user_id(user_id)])
    try:
        for piece in exported(database.read, tenant, normal_user_id(user_id)):
            print(piece, end="")
    except NotFound:
        raise no_user(user_id, tenant) from None
    print()


@app.command("export")
def users_export(
    user_ids: Annotated[list[str] | None, typer.Argument(help="The users. Default: all users of the tenant.")] = None,
    tenant: Tenant = "default",
    output: Annotated[Path | None, typer.Option("--out", help="File to write. Default: stdout.")] = None,
    targets: Annotated[
        int, typer.Option(min=0, help="Maximum pairs to hold out per user as targets; 0 holds out none.")
    ] = 4,
    force: Force = False,
    store: StoreUrl = STORE,
) -> None:
    """Write users as the JSONL that `popi train` reads.

    Users without a pair to hold out and users who switched learning off are skipped and counted.
    """
    need_serving()
    from popi.data.jsonl import refuse_existing, write_rows
    from popi.serving.api.stored import NotFound, OverBound, training_line

    if output is not None:
        refuse_existing(output, force)
    database = open_as_operator(store)
    skipped = opted_out = 0

    def rows() -> Any:
        nonlocal skipped, opted_out
        ids = map(normal_user_id, user_ids) if user_ids else user_ids_of(database, tenant)
        for user_id in noted(database, "export", tenant, ids):
            try:
                user = database.read(training_line, tenant, user_id, targets)
            except NotFound:
                if user_ids:
                    raise no_user(user_id, tenant) from None
                continue  # erased in the meantime
            except OverBound:
                opted_out += 1
                continue
            if not user.signals or (targets and not user.targets):
                skipped += 1
            else:
                yield user.model_dump(exclude_none=True)

    if output is not None:
        write_rows(output, rows(), force=force)
    else:
        for row in rows():
            print(json.dumps(row, ensure_ascii=False))
    if skipped:
        console.print(f"{skipped} users skipped: no pair to hold out as a target", highlight=False)
    if opted_out:
        console.print(f"{opted_out} users skipped: they switched learning off", highlight=False)


@app.command("controls")
def users_controls(
    user_id: Annotated[str, typer.Argument(help="The user, who need not be stored yet.")],
    tenant: Tenant = "default",
    use: Annotated[
        bool | None, typer.Option("--use/--no-use", help="Whether to use what is stored about the user.")
    ] = None,
    learn: Annotated[
        bool | None, typer.Option("--learn/--no-learn", help="Whether to learn from the user's behaviour.")
    ] = None,
    store: StoreUrl = STORE,
) -> None:
    """Show or set a user's two switches. Running gateways follow within a second, or before this returns if
    use is switched off.

    Keep the line on stderr with the gateway's log, for `popi replay`.
    """
    need_serving()
    from popi.serving.api.commands import switch_now
    from popi.serving.proxy.logs import on_stderr
    from popi.serving.store import controls, keys

    database, user_id = open_as_operator(store), normal_user_id(user_id)
    if not database.read(keys.tenant_exists, tenant):
        raise DataError(f"there is no tenant {tenant!r}; create it with `popi keys create`")
    if use is None and learn is None:
        note_read(database, "read", tenant, [user_id])
        switches = database.read(controls.find, tenant, user_id)
    else:
        with on_stderr():
            switches = switch_now(database, tenant, user_id, use, learn)
    print(json.dumps({"use": switches.use, "learn": switches.learn}))


@app.command("delete")
def users_delete(
    user_id: Annotated[str, typer.Argument(help="The user.")],
    tenant: Tenant = "default",
    signal_id: Annotated[
        str | None, typer.Option("--signal", help="Delete a signal and everything learned from it.", metavar="ID")
    ] = None,
    clause: Annotated[str | None, typer.Option(help="Delete a statement from every version.", metavar="ID")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Delete a version of the summary.")] = None,
    store: StoreUrl = STORE,
) -> None:
    """Delete a signal, a statement or a version of a user's summary, and print what was deleted."""
    need_serving()
    from popi.serving.api.commands import delete_now
    from popi.serving.api.stored import NotFound

    if sum(one is not None for one in (signal_id, clause, version)) != 1:
        raise typer.BadParameter("name exactly one of --signal, --clause and --version")
    try:
        deleted = delete_now(open_as_operator(store), tenant, user_id, signal=signal_id, clause=clause, version=version)
    except NotFound as error:
        raise DataError(str(error)) from None
    print(deleted.model_dump_json(indent=2))


@app.command("rebuild")
def users_rebuild(
    user_id: Annotated[str, typer.Argument(help="The user.")], tenant: Tenant = "default", store: StoreUrl = STORE
) -> None:
    """Ask a worker to rewrite a user's summary from all signals. Locked clauses stay."""
    need_serving()
    from popi.serving.api.commands import rebuild
    from popi.serving.api.stored import NotFound

    database = open_as_operator(store)
    try:
        database.write(rebuild, tenant, normal_user_id(user_id), database.now)
    except NotFound:
        raise no_user(user_id, tenant) from None
    console.print(f"the summary of {user_id!r} will be rewritten", highlight=False, markup=False)


@app.command("renew")
def users_renew(
    failed: Annotated[bool, typer.Option("--failed", help="Retry renewals that were given up.")] = False,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant. Default: all.", metavar="NAME")] = None,
    store: StoreUrl = STORE,
) -> None:
    """Ask a worker to renew summaries that are out of date. For one user: `popi users rebuild`."""
    need_serving()
    from popi.serving.store import jobs

    if not failed:
        raise typer.BadParameter("choose which summaries to renew: --failed retries renewals that were given up")
    database = open_as_operator(store)
    revived = database.write(lambda connection: jobs.revive(connection, database.now(connection), tenant))
    console.print(f"{revived} renewals will be retried", highlight=False)


@app.command("merge")
def users_merge(
    source: Annotated[str, typer.Argument(help="The user to merge; this id is gone afterwards.")],
    into: Annotated[str, typer.Option(help="The user to keep. Created if necessary.")],
    tenant: Tenant = "default",
    store: StoreUrl = STORE,
) -> None:
    """Merge one user into another: signals, summaries and keys (docs/serving.md). This can't be undone.

    When this returns, running gateways have followed. Keep the line on stderr with the gateway's log, for `popi
    replay`.
    """
    need_serving()
    from popi.serving.api.commands import merge_now
    from popi.serving.api.stored import NotFound
    from popi.serving.proxy.logs import on_stderr

    try:
        with on_stderr():
            moved = merge_now(open_as_operator(store), tenant, normal_user_id(into), normal_user_id(source))
    except NotFound:
        raise no_user(source, tenant) from None
    print(json.dumps(moved.__dict__))


@app.command("erase")
def users_erase(
    user_id: Annotated[str, typer.Argument(help="The user.")], tenant: Tenant = "default", store: StoreUrl = STORE
) -> None:
    """Erase a user and print the receipt. When this returns, no running gateway uses anything of theirs.

    Keep the line on stderr with the gateway's log, for `popi replay`.
    """
    need_serving()
    from popi.serving.api.commands import erase_now
    from popi.serving.proxy.logs import on_stderr

    with on_stderr():
        receipt = erase_now(open_as_operator(store), tenant, normal_user_id(user_id))
    print(receipt.model_dump_json(indent=2))
