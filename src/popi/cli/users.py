"""Commands about the users of a store: users list, show, export, controls, delete, rebuild, renew, merge, erase."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from popi.cli.shared import Force, console
from popi.cli.store import (
    STORE,
    StoreUrl,
    Tenant,
    each_noted,
    need_serving,
    no_user,
    open_as_operator,
    saw,
    user_ids_of,
)
from popi.errors import DataError
from popi.profiles.user_id import normal_user_id

app = typer.Typer(help="Users of the gateway: list, show, export, erase.", no_args_is_help=True)


@app.command("list")
def users_list(tenant: Tenant = "default", store: StoreUrl = STORE) -> None:
    """List a tenant's user ids, one a line (as JSON strings)."""
    need_serving()
    database = open_as_operator(store)
    saw(database, "list", tenant)
    for user_id in user_ids_of(database, tenant):
        print(json.dumps(user_id, ensure_ascii=False))


@app.command("show")
def users_show(
    user_id: Annotated[str, typer.Argument(help="The user.")], tenant: Tenant = "default", store: StoreUrl = STORE
) -> None:
    """Show a user: their signals and every version of their summary, as JSON."""
    need_serving()
    from popi.serving.api.stored import NotFound, exported

    database = open_as_operator(store)
    saw(database, "read", tenant, [normal_user_id(user_id)])
    try:
        for piece in exported(database.read, tenant, normal_user_id(user_id)):
            print(piece, end="")
    except NotFound:
        raise no_user(user_id, tenant) from None
    print()


@app.command("export")
def users_export(
    user_ids: Annotated[list[str] | None, typer.Argument(help="The users; by default all of the tenant.")] = None,
    tenant: Tenant = "default",
    output: Annotated[Path | None, typer.Option("--out", help="File to write; stdout by default.")] = None,
    targets: Annotated[
        int, typer.Option(min=0, help="Most pairs of a user to hold out as targets; 0 holds out none.")
    ] = 4,
    force: Force = False,
    store: StoreUrl = STORE,
) -> None:
    """Write users as the JSONL that `popi train` reads. Users without a pair to hold out are left out, and those who
    do not want to be learned from; both are counted."""
    need_serving()
    from popi.data.jsonl import refuse_existing, write_rows
    from popi.serving.api.stored import NotFound, OverBound, training_line

    if output is not None:
        refuse_existing(output, force)
    database = open_as_operator(store)
    skipped = unwilling = 0

    def rows() -> Any:
        nonlocal skipped, unwilling
        named = map(normal_user_id, user_ids) if user_ids else user_ids_of(database, tenant)
        for user_id in each_noted(database, "export", tenant, named):
            try:
                user = database.read(training_line, tenant, user_id, targets)
            except NotFound:
                if user_ids:
                    raise no_user(user_id, tenant) from None
                continue  # erased meanwhile
            except OverBound:
                unwilling += 1
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
        console.print(f"{skipped} users are left out: no pair to hold out as a target", highlight=False)
    if unwilling:
        console.print(f"{unwilling} users are left out: they do not want to be learned from", highlight=False)


@app.command("controls")
def users_controls(
    user_id: Annotated[str, typer.Argument(help="The user; nothing need be known of them yet.")],
    tenant: Tenant = "default",
    use: Annotated[bool | None, typer.Option("--use/--no-use", help="Use what is known of them.")] = None,
    learn: Annotated[bool | None, typer.Option("--learn/--no-learn", help="Learn from what they do.")] = None,
    store: StoreUrl = STORE,
) -> None:
    """Set a user's two switches, or show them. Gateways that run take notice within a few seconds.

    The line on stderr is for `popi replay`, as that of the gateway's log: keep it with the log."""
    need_serving()
    from popi.serving.api.commands import switch_now
    from popi.serving.proxy.logs import on_stderr
    from popi.serving.store import controls, keys

    database, user_id = open_as_operator(store), normal_user_id(user_id)
    if not database.read(keys.tenant_exists, tenant):
        raise DataError(f"there is no tenant {tenant!r}; `popi keys create` makes one")
    if use is None and learn is None:
        saw(database, "read", tenant, [user_id])
        found = database.read(controls.find, tenant, user_id)
    else:
        with on_stderr():
            found = switch_now(database, tenant, user_id, use, learn)
    print(json.dumps({"use": found.use, "learn": found.learn}))


@app.command("delete")
def users_delete(
    user_id: Annotated[str, typer.Argument(help="The user.")],
    tenant: Tenant = "default",
    signal_id: Annotated[
        str | None, typer.Option("--signal", help="A signal, with what was learned from it.", metavar="ID")
    ] = None,
    clause: Annotated[str | None, typer.Option(help="A statement, in every version.", metavar="ID")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="A version of the summary.")] = None,
    store: StoreUrl = STORE,
) -> None:
    """Delete a part of what is stored of a user: a signal, a statement or a version; prints what went."""
    need_serving()
    from popi.serving.api.commands import delete_now
    from popi.serving.api.stored import NotFound

    if sum(one is not None for one in (signal_id, clause, version)) != 1:
        raise typer.BadParameter("say what: --signal, --clause or --version, one of the three")
    try:
        done = delete_now(open_as_operator(store), tenant, user_id, signal=signal_id, clause=clause, version=version)
    except NotFound as error:
        raise DataError(str(error)) from None
    print(done.model_dump_json(indent=2))


@app.command("rebuild")
def users_rebuild(
    user_id: Annotated[str, typer.Argument(help="The user.")], tenant: Tenant = "default", store: StoreUrl = STORE
) -> None:
    """Have a user's summary written anew from all signals; a worker does it. Locked clauses stay."""
    need_serving()
    from popi.serving.api.commands import rebuild
    from popi.serving.api.stored import NotFound

    database = open_as_operator(store)
    try:
        database.write(rebuild, tenant, normal_user_id(user_id), database.now)
    except NotFound:
        raise no_user(user_id, tenant) from None
    console.print(f"the summary of {user_id!r} will be written anew", highlight=False, markup=False)


@app.command("renew")
def users_renew(
    failed: Annotated[bool, typer.Option("--failed", help="Those whose renewals were given up.")] = False,
    tenant: Annotated[str | None, typer.Option(help="Of one tenant alone; by default of all.")] = None,
    store: StoreUrl = STORE,
) -> None:
    """Have summaries renewed that are behind; a worker does it. For one user: `popi users rebuild`."""
    need_serving()
    from popi.serving.store import jobs

    if not failed:
        raise typer.BadParameter("say whose: --failed, those whose renewals were given up")
    database = open_as_operator(store)
    revived = database.write(lambda connection: jobs.revive(connection, database.now(connection), tenant))
    console.print(f"{revived} renewals begin anew", highlight=False)


@app.command("merge")
def users_merge(
    source: Annotated[str, typer.Argument(help="The user who becomes part of the other, and is gone.")],
    into: Annotated[str, typer.Option(help="The user who stays; made if need be.")],
    tenant: Tenant = "default",
    store: StoreUrl = STORE,
) -> None:
    """Make one user part of another: signals, summaries, keys (docs/serving.md). There is no way back.

    Gateways that run notice within a few seconds. The line on stderr is for `popi replay`: keep it with the log."""
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
    """Erase a user, and print the receipt. Gateways that run forget them within a few seconds.

    The line on stderr is for `popi replay`, as that of the gateway's log: keep it with the log."""
    need_serving()
    from popi.serving.api.commands import erase_now
    from popi.serving.proxy.logs import on_stderr

    with on_stderr():
        receipt = erase_now(open_as_operator(store), tenant, normal_user_id(user_id))
    print(receipt.model_dump_json(indent=2))
