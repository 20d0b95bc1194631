"""The database for an event loop: whole transactions run in threads.

There are five independent queues: `lookup` for what a chat needs (its key, the current summary), `check` for keys and
cookies that are not authenticated yet, `follow` for other processes' changes, `read` for all other reads, and `write`.
No request waits longer than `BUSY_SECONDS`, and requests are rejected at once while a queue is full.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from popi.errors import StoreError
from popi.serving.store.database import Database, Query
from popi.serving.store.engine import BUSY, wait_from_now

P = ParamSpec("P")
T = TypeVar("T")

LOOKUP_THREADS, CHECK_THREADS, READ_THREADS, WRITE_THREADS = 2, 1, 4, 4
MAX_CHECKS, MAX_LOOKUPS, MAX_WAITING = 128, 512, 2048
"""Maximum lengths of the queues."""
HANG_SECONDS = 1.0
"""How long no lookups are started after one timed out: a chat waits for the store only once."""


class Store:
    """A `Database` whose queries are awaited."""

    def __init__(self, database: Database) -> None:
        self.database = database
        writers = 1 if database.kind == "sqlite" else WRITE_THREADS  # SQLite allows only one writer
        self._lookups = _Queue("popi-lookup", LOOKUP_THREADS, MAX_LOOKUPS)
        self._checks = _Queue("popi-check", CHECK_THREADS, MAX_CHECKS)
        self._follows = _Queue("popi-follow", 1, MAX_CHECKS)
        self._reads = _Queue("popi-read", READ_THREADS, MAX_WAITING)
        self._writes = _Queue("popi-write", writers, MAX_WAITING)
        self._hangs_until = 0.0

    @property
    def is_hanging(self) -> bool:
        """Whether a lookup timed out a moment ago."""
        return time.monotonic() < self._hangs_until

    def report_timeout(self) -> None:
        """Record that a lookup took longer than a chat can wait."""
        self._hangs_until = time.monotonic() + HANG_SECONDS

    async def lookup(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read data that a chat is waiting for.

        Raises:
            StoreError: the database failed, or the queue is full. The other queues raise it too.
        """
        return await self._lookups.run(partial(self.database.read, query, *args, **kwargs))

    async def check(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read a key or session for a caller who is not authenticated yet."""
        return await self._checks.run(partial(self.database.read, query, *args, **kwargs))

    async def follow(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read other processes' changes."""
        return await self._follows.run(partial(self.database.read, query, *args, **kwargs))

    async def read(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`Database.read`."""
        return await self._reads.run(partial(self.database.read, query, *args, **kwargs))

    async def stream(self, pieces: Iterator[T]) -> AsyncIterator[T]:
        """Yield from an iterator of reads. It holds no thread between steps, however slow its client is."""
        while (piece := await self._reads.run(partial(next, pieces, None))) is not None:
            yield piece

    async def write(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`Database.write`. It completes even if the caller is cancelled."""
        return await self._writes.run(partial(self.database.write, query, *args, **kwargs))

    async def scrub(self) -> bool:
        """`Database.scrub`, after pending writes."""
        return await self._writes.run(self.database.scrub)

    def close(self) -> None:
        """Wait for running transactions, and close the database."""
        for queue in (self._lookups, self._checks, self._follows, self._reads, self._writes):
            queue.pool.shutdown(wait=True, cancel_futures=True)
        self.database.close()


class _Queue:
    """A bounded queue of calls with its own threads."""

    def __init__(self, name: str, threads: int, limit: int) -> None:
        self.pool, self._limit, self._waiting = ThreadPoolExecutor(threads, name), limit, 0

    async def run(self, call: Callable[[], T]) -> T:
        if self._waiting >= self._limit:
            raise StoreError(BUSY)
        self._waiting += 1
        context = copy_context()
        context.run(wait_from_now)  # time spent in the queue counts
        future = asyncio.get_running_loop().run_in_executor(self.pool, partial(context.run, call))
        future.add_done_callback(self._done)
        return await asyncio.shield(future)  # counted until the thread is free again

    def _done(self, future: "asyncio.Future[T]") -> None:
        self._waiting -= 1
        if not future.cancelled():
            future.exception()  # mark as retrieved, even if the caller is gone
