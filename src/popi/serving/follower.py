"""Follow what other processes on the store change, so that this one drops it from memory (store.changes)."""

import asyncio
import logging
import os
import platform
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

from popi.errors import StoreError
from popi.serving.proxy.logs import log_fault
from popi.serving.store import changes
from popi.serving.store.changes import LEASE_SECONDS, Change, Cursor
from popi.serving.store.threads import Store

log = logging.getLogger("popi.gateway.store")

POLL_SECONDS = 0.2
"""Interval of reading the changes: other processes' edits take effect after it; erasures wait up to twice as long."""
FORGET_SECONDS = 60.0
"""How long changes stay in the store. Must exceed the lease."""


class Follower:
    """Reads the changes of other processes several times a second.

    Args:
        store: where they are.
        apply: drops what changed from memory; called in the event loop, as is `drop_all`.
        drop_all: drops everything, since changes may have been missed.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        apply: Callable[[Collection[Change]], None],
        drop_all: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.process = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._store, self._apply, self._drop_all, self._clock = store, apply, drop_all, clock
        self._cursor: Cursor | None = None
        self._read_at = -LEASE_SECONDS
        self._old: deque[tuple[float, Cursor]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = threading.Event()
        self._fences = ThreadPoolExecutor(1, "popi-fence")
        self._turn = asyncio.Lock()
        self._next_fence: asyncio.Task[None] | None = None

    def is_current(self) -> bool:
        """Whether what is in memory may be used: the changes were read within the lease."""
        return self._clock() - self._read_at < LEASE_SECONDS

    async def start(self) -> None:
        """Register, and begin to follow in the running event loop."""
        try:
            await self._register()
        except StoreError as error:  # tried again; until then nothing in memory is used
            log.error("can't read other processes' changes", extra={"fields": {"error": str(error)}})
        loop = asyncio.get_running_loop()
        # Nobody has to wait for processes that were killed, perhaps the one that this one replaces.
        self._tasks |= {loop.create_task(self._follow()), loop.create_task(self.everyone())}

    async def stop(self) -> None:
        """Stop following. From here on, nothing in memory may be used."""
        self._stopping.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._read_at = -LEASE_SECONDS
        self._fences.shutdown(wait=False, cancel_futures=True)
        try:
            await self._store.write(changes.leave, self.process)
        except StoreError:  # the next one to wait for us dismisses us
            pass

    async def everyone(self) -> None:
        """Wait until no process uses what was in memory before this call. Concurrent callers share a fence.

        This process must have dropped it already.
        """
        if self._next_fence is None:
            self._next_fence = asyncio.get_running_loop().create_task(self._fence())
            self._tasks.add(self._next_fence)
            self._next_fence.add_done_callback(self._tasks.discard)
        await asyncio.shield(self._next_fence)

    async def _fence(self) -> None:
        async with self._turn:
            self._next_fence = None  # a later caller's change may come after this fence
            loop, database = asyncio.get_running_loop(), self._store.database
            await loop.run_in_executor(self._fences, changes.wait_for_all, database, self.process, self._stopping)

    async def _follow(self) -> None:
        failing = False
        while True:
            try:
                await self._poll()
                failing = False
            except StoreError as error:
                if not failing:
                    log.error("can't read other processes' changes", extra={"fields": {"error": str(error)}})
                failing = True
            except Exception as error:  # an error must not end this
                log_fault("can't follow other processes' changes", error)
            await asyncio.sleep(POLL_SECONDS)

    async def _poll(self) -> None:
        """Read the changes once, apply them, and confirm fences."""
        began, news = self._clock(), None
        if self._cursor is not None and self.is_current():
            news = await self._store.follow(changes.news, self.process, self._cursor)
        if news is None:
            await self._register()
            return
        if news.changes:
            self._apply(news.changes)
        self._cursor, self._read_at = news.cursor, began
        if news.fences:
            await self._store.write(changes.confirm, self.process, news.fences)
        if not self._old or began - self._old[-1][0] >= FORGET_SECONDS / 4:
            self._old.append((began, news.cursor))
            if began - self._old[0][0] >= FORGET_SECONDS:
                await self._store.write(changes.forget, self._old.popleft()[1])

    async def _register(self) -> None:
        began = self._clock()
        cursor = await self._store.write(changes.register, self.process)
        self._drop_all()
        self._cursor, self._read_at = cursor, began
        self._old.clear()
