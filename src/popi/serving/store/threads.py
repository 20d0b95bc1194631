"""The database for an event loop: whole transactions in threads, each one hop away.

Three queues, so that none waits for another: `lookup` for what a chat needs (keys, the current summary), `read` for all
other reading, `write`. A lookup is refused at once where too many wait already: behind a database that hangs they
would pile up.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from popi.errors import StoreError
from popi.serving.store.database import Database, Query

P = ParamSpec("P")
T = TypeVar("T")

LOOKUP_THREADS, READ_THREADS, WRITE_THREADS = 2, 4, 4
MOST_LOOKUPS = 512
"""Lookups that may wait at once."""
HANGS_SECONDS = 1.0
"""After one lookup was waited for in vain, so long others are not begun: a chat waits for the store once."""


class Store:
    """A `Database` whose queries are awaited."""

    def __init__(self, database: Database) -> None:
        self.database = database
        writers = 1 if database.kind == "sqlite" else WRITE_THREADS  # SQLite has one writer anyway
        self._lookups = ThreadPoolExecutor(LOOKUP_THREADS, "popi-lookup")
        self._reads = ThreadPoolExecutor(READ_THREADS, "popi-read")
        self._writes = ThreadPoolExecutor(writers, "popi-write")
        self._waiting = 0
        self._hangs_until = 0.0

    @property
    def hangs(self) -> bool:
        """Whether a lookup was waited for in vain just now."""
        return time.monotonic() < self._hangs_until

    def waited_in_vain(self) -> None:
        """A lookup was not there in the time that a chat can spare."""
        self._hangs_until = time.monotonic() + HANGS_SECONDS

    async def lookup(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read what a chat waits for.

        Raises:
            StoreError: the database failed, or too many lookups wait for it already.
        """
        if self._waiting >= MOST_LOOKUPS:
            raise StoreError("the store answers too slowly")
        self._waiting += 1
        future = self._submit(self._lookups, self.database.read, query, *args, **kwargs)
        future.add_done_callback(self._answered)
        return await asyncio.shield(future)  # counted until the thread is free again

    async def read(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`Database.read`."""
        return await self._submit(self._reads, self.database.read, query, *args, **kwargs)

    async def stream(self, pieces: Iterator[T]) -> AsyncIterator[T]:
        """What an iterator of reads yields. Between two steps it holds no thread, however slow its client is."""
        while (piece := await self._submit(self._reads, next, pieces, None)) is not None:
            yield piece

    async def write(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`Database.write`. A caller that goes away does not stop it half-way."""
        return await asyncio.shield(self._submit(self._writes, self.database.write, query, *args, **kwargs))

    async def scrub(self) -> bool:
        """`Database.scrub`, behind the writes that wait."""
        return await asyncio.shield(self._submit(self._writes, self.database.scrub))

    def _submit(
        self, pool: ThreadPoolExecutor, call: Callable[..., T], *args: Any, **kwargs: Any
    ) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(pool, partial(call, *args, **kwargs))

    def _answered(self, future: "asyncio.Future[Any]") -> None:
        self._waiting -= 1
        if not future.cancelled():
            future.exception()  # looked at, also where the caller has gone

    def close(self) -> None:
        """Wait for what is under way, and close the database."""
        for pool in (self._lookups, self._reads, self._writes):
            pool.shutdown(wait=True, cancel_futures=True)
        self.database.close()
