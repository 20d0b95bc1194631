"""What was read of users, on its way into the audit log: collected, and written once a second, so that no reader waits.

The same reader who reads the same user again within ten minutes is noted once.
"""

import asyncio
import logging
import time
from collections import OrderedDict

from sqlalchemy import Connection

from popi.errors import StoreError
from popi.serving.store import audit
from popi.serving.store.audit import ACTOR, Seen
from popi.serving.store.threads import Store

log = logging.getLogger("popi.gateway.audit")

AGAIN_SECONDS = 600.0
WAIT_SECONDS = 1.0
MOST_WAITING = 10_000
MOST_REMEMBERED = 10_000


class Reads:
    """Notes reads.

    Args:
        store: where the log is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._noted: OrderedDict[Seen, float] = OrderedDict()
        self._waiting: list[Seen] = []
        self._writing: asyncio.Task[None] | None = None
        self._lost = 0

    def saw(self, action: str, tenant: str, user_id: str = "") -> None:
        """Note that who acts in this context has read something; does not wait."""
        actor = ACTOR.get()
        if actor is None:
            return
        seen, now = Seen(actor, action, tenant, user_id), time.monotonic()
        if now - self._noted.get(seen, -AGAIN_SECONDS) < AGAIN_SECONDS:
            return
        self._noted[seen] = now
        self._noted.move_to_end(seen)
        while len(self._noted) > MOST_REMEMBERED:
            self._noted.popitem(last=False)
        if len(self._waiting) >= MOST_WAITING:
            self._lost += 1
            return
        self._waiting.append(seen)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write_soon())

    def forget(self, tenant: str, user_id: str) -> None:
        """A user is gone: their id is remembered no longer."""
        for seen in [one for one in self._noted if (one.tenant, one.user_id) == (tenant, user_id)]:
            del self._noted[seen]

    async def settled(self) -> None:
        """Write what waits."""
        if self._writing is not None:
            self._writing.cancel()
        await self._write()

    async def _write_soon(self) -> None:
        while self._waiting:
            await asyncio.sleep(WAIT_SECONDS)
            await self._write()

    async def _write(self) -> None:
        batch, self._waiting = self._waiting, []
        if not batch:
            return

        def write(connection: Connection) -> None:
            audit.note_seen(connection, self._store.database.now(connection), batch)

        try:
            await self._store.write(write)
        except StoreError as error:  # it is tried again
            self._waiting = (batch + self._waiting)[:MOST_WAITING]
            self._lost += len(batch) + len(self._waiting) - MOST_WAITING if len(self._waiting) == MOST_WAITING else 0
            log.error("reads could not be noted in the audit log", extra={"fields": {"error": str(error)}})
        if self._lost:
            log.error("reads are missing in the audit log", extra={"fields": {"missing": self._lost}})
            self._lost = 0
