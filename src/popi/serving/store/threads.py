"""The database for an event loop: whole transactions in threads, each one hop away.

Four queues, so that none waits for another: `lookup` for what a chat needs (its key once more, the current summary),
`check` for keys and cookies that nobody vouches for yet, `read` for all other reading, `write`. What waits was asked
for at most `BUSY_SECONDS` ago; where too much waits already, more is refused at once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from popi.errors import StoreError
from popi.serving.store.database import BUSY, Database, Query, wait_from_now

P = ParamSpec("P")
T = TypeVar("T")

LOOKUP_THREADS, CHECK_THREADS, READ_THREADS, WRITE_THREADS = 2, 1, 4, 4
MOST_CHECKS, MOST_LOOKUPS, MOST_WAITING = 128, 512, 2048
"""Checks, lookups and others that may wait at once."""
HANGS_SECONDS = 1.0
"""After one lookup was waited for in vain, so long others are not begun: a chat waits for the store once."""


class Store:
    """A `Database` whose queries are awaited."""

    def __init__(self, database: Database) -> None:
        self.database = database
        writers = 1 if database.kind == "sqlite" else WRITE_THREADS  # SQLite has one writer anyway
        self._lookups = _Queue("popi-lookup", LOOKUP_THREADS, MOST_LOOKUPS)
        self._checks = _Queue("popi-check", CHECK_THREADS, MOST_CHECKS)
        self._reads = _Queue("popi-read", READ_THREADS, MOST_WAITING)
        self._writes = _Queue("popi-write", writers, MOST_WAITING)
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
            StoreError: the database failed, or too much waits for it already (so do the other queues).
        """
        return await self._lookups.run(partial(self.database.read, query, *args, **kwargs))

    async def check(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read a key or session for somebody who may be anybody."""
        return await self._checks.run(partial(self.database.read, query, *args, **kwargs))

    async def read(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`Database.read`."""
        return await self._reads.run(partial(self.database.read, query, *args, **kwargs))

    async def stream(self, pieces: Iterator[T]) -> AsyncIterator[T]:
        """What an iterator of reads yields. Between two steps it holds no thread, however slow its client is."""
        while (piece := await self._reads.run(partial(next, pieces, None))) is not None:
            yield piece

    async def write(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`Database.write`. A caller that goes away does not stop it half-way."""
        return await self._writes.run(partial(self.database.write, query, *args, **kwargs))

    async def scrub(self) -> bool:
        """`Database.scrub`, behind the writes that wait."""
        return await self._writes.run(self.database.scrub)

    def close(self) -> None:
        """Wait for what is under way, and close the database."""
        for queue in (self._lookups, self._checks, self._reads, self._writes):
            queue.pool.shutdown(wait=True, cancel_futures=True)
        self.database.close()


class _Queue:
    """Calls that wait for threads of their own, not too many."""

    def __init__(self, name: str, threads: int, most: int) -> None:
        self.pool, self._most, self._waiting = ThreadPoolExecutor(threads, name), most, 0

    async def run(self, call: Callable[[], T]) -> T:
        if self._waiting >= self._most:
            raise StoreError(BUSY)
        self._waiting += 1
        context = copy_context()
        context.run(wait_from_now)  # and not from when a thread is free
        future = asyncio.get_running_loop().run_in_executor(self.pool, partial(context.run, call))
        future.add_done_callback(self._done)
        return await asyncio.shield(future)  # counted until the thread is free again

    def _done(self, future: "asyncio.Future[T]") -> None:
        self._waiting -= 1
        if not future.cancelled():
            future.exception()  # looked at, also where the caller has gone
