"""Commands for operators of the gateway: replay, audit."""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from popi.cli.store import STORE, StoreUrl, need_serving, open_store
from popi.profiles.user_id import normal_user_id


def replay(
    logs: Annotated[list[Path], typer.Argument(help="Gateway logs and saved output of popi commands; - reads stdin.")],
    since: Annotated[
        str, typer.Option(help="When the backup began, or earlier, such as 2026-11-30T03:00:00Z.", metavar="TIME")
    ],
    store: StoreUrl = STORE,
) -> None:
    """Replay the erasures, merges, switches and revocations made since a restored backup, from the logs.

    Run it before gateways and workers start (docs/deploying.md). It prints what it did; running it again does nothing.
    """
    need_serving()
    from popi.serving.replay import Line, read_lines
    from popi.serving.replay import replay as replayed

    try:
        start = datetime.fromisoformat(since)
    except ValueError:
        raise typer.BadParameter(f"--since must be a time such as 2026-11-30T03:00:00Z; got {since!r}") from None
    if start.tzinfo is None:
        raise typer.BadParameter(f"--since needs a time zone: {since}Z or {since}+01:00")
    lines: list[Line] = []
    for log in logs:
        with sys.stdin if str(log) == "-" else log.open(encoding="utf-8") as text:
            lines += read_lines(text, start.timestamp(), str(log))
    print(json.dumps(replayed(open_store(store), lines).__dict__, indent=2))


def audit(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.", metavar="NAME")] = None,
    user: Annotated[str | None, typer.Option(help="Only this user of the tenant, who may have been erased.")] = None,
    store: StoreUrl = STORE,
) -> None:
    """Print the audit log: who read or changed which user, newest first, one JSON object per line."""
    need_serving()
    from popi.serving.api.access import audit_entry
    from popi.serving.store import audit

    if user is not None and tenant is None:
        raise typer.BadParameter("--user needs --tenant")
    for rows in audit.pages(open_store(store).read, tenant, None if user is None else normal_user_id(user)):
        for row in rows:
            print(audit_entry(row).model_dump_json())
