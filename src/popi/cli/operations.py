"""Commands of operators: replay, audit."""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from popi.cli.store import STORE, StoreUrl, need_serving, open_store
from popi.profiles.user_id import normal_user_id

app = typer.Typer()


@app.command()
def replay(
    logs: Annotated[
        list[Path], typer.Argument(help="Logs of the gateways, and lines that commands printed; - is stdin.")
    ],
    since: Annotated[
        str, typer.Option(help="When the backup was begun, or earlier: 2026-11-30T03:00:00Z.", metavar="TIME")
    ],
    store: StoreUrl = STORE,
) -> None:
    """After a backup was restored: erase, merge, switch off and revoke again what the logs say was since the backup.

    Run it before gateways and workers start (docs/deploying.md). It prints what was done; a second run does nothing.
    """
    need_serving()
    from popi.serving.replay import Line, read_lines
    from popi.serving.replay import replay as replayed

    try:
        begun = datetime.fromisoformat(since)
    except ValueError:
        raise typer.BadParameter(f"--since is a time like 2026-11-30T03:00:00Z; got {since!r}") from None
    if begun.tzinfo is None:
        raise typer.BadParameter(f"--since needs its zone: {since}Z, or {since}+01:00")
    lines: list[Line] = []
    for log in logs:
        with sys.stdin if str(log) == "-" else log.open(encoding="utf-8") as text:
            lines += read_lines(text, begun.timestamp(), str(log))
    print(json.dumps(replayed(open_store(store), lines).__dict__, indent=2))


@app.command("audit")
def audit_list(
    tenant: Annotated[str | None, typer.Option(help="Of one tenant alone.")] = None,
    user: Annotated[str | None, typer.Option(help="Of one user of that tenant, also one who was erased.")] = None,
    store: StoreUrl = STORE,
) -> None:
    """Print the audit log: who read or changed whom, newest first, one JSON object a line."""
    need_serving()
    from popi.serving.api.access import audit_entry
    from popi.serving.store import audit

    if user is not None and tenant is None:
        raise typer.BadParameter("--user needs --tenant")
    for rows in audit.pages(open_store(store).read, tenant, None if user is None else normal_user_id(user)):
        for row in rows:
            print(audit_entry(row).model_dump_json())
