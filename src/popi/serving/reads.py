"""Collect reads for the audit log, and write them once a second, so that no request waits.

Repeated reads of the same user by the same actor within ten minutes are recorded once.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Collection

from sqlalchemy import Connection

from popi.errors import StoreError
from popi.serving.store import audit
from popi.serving.store.audit import ACTOR, Seen
from popi.serving.store.changes import user_hash
from popi.serving.store.threads import Store

log = logging.getLogger("popi.gateway.audit")

REPEAT_SECONDS = 600.0
WRITE_SECONDS = 1.0
MAX_PENDING = 10_000
MAX_REMEMBERED = 10_000


class Reads:
    """Records reads in the audit log.

    Args:
        store: where the audit log is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recorded: OrderedDict[Seen, float] = OrderedDict()
        self._pending: list[Seen] = []
        self._writing: asyncio.Task[None] | None = None
        self._lost = 0

    def record(self, action: str, tenant: str, user_id: str = "") -> None:
        """Record that the current context's actor has read something. Does not block."""
        actor = ACTOR.get()
        if actor is None:
            return
        seen, now = Seen(actor, action, tenant, user_id), time.monotonic()
        if now - self._recorded.get(seen, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return
        self._recorded[seen] = now
        self._recorded.move_to_end(seen)
        while len(self._recorded) > MAX_REMEMBERED:
            self._recorded.popitem(last=False)
        if len(self._pending) >= MAX_PENDING:
            self._lost += 1
            return
        self._pending.append(seen)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write_soon())

    def forget(self, tenant: str, user_id: str) -> None:
        """Drop an erased user's id from memory."""
        for seen in [one for one in self._recorded if (one.tenant, one.user_id) == (tenant, user_id)]:
            del self._recorded[seen]

    def forget_hashed(self, hashes: Collection[str]) -> None:
        """`forget` for users whom another process has erased, by their hashes (store.changes)."""
        for seen in [one for one in self._recorded if user_hash(one.tenant, one.user_id) in hashes]:
            del self._recorded[seen]

    async def settled(self) -> None:
        """Write all pending reads."""
        if self._writing is not None:
            self._writing.cancel()
        await self._write()

    async def _write_soon(self) -> None:
        while self._pending:
            await asyncio.sleep(WRITE_SECONDS)
            await self._write()

    async def _write(self) -> None:
        batch, self._pending = self._pending, []
        if not batch:
            return

        def write(connection: Connection) -> None:
            audit.note_seen(connection, self._store.database.now(connection), batch)

        try:
            await self._store.write(write)
        except StoreError as error:  # tried again later
            self._pending = (batch + self._pending)[:MAX_PENDING]
            self._lost += len(batch) + len(self._pending) - MAX_PENDING if len(self._pending) == MAX_PENDING else 0
            log.error("can't record reads in the audit log", extra={"fields": {"error": str(error)}})
        if self._lost:
            log.error("reads are missing in the audit log", extra={"fields": {"missing": self._lost}})
            self._lost = 0
