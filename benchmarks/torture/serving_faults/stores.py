"""Broken stores: locked, full, moved, deleted, stopped, cut off, exhausted; and back.

Clients write and read throughout. While the store is out of reach they get 503 with what to do, chats are answered, and
afterwards everything works again by itself.
"""

import asyncio
import os
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psycopg

from .cases import Case, Report, Skipped
from .clients import Client, Load, Unanswered
from .model import ModelServer
from .postgres import Server
from .processes import HEADERS, Gateway, Worker, tracebacks

CLIENTS = 3
SHORT_S, LONG_S = 3.0, 14.0
"""Faults shorter and longer than the gateway waits for its store (10 s)."""
SLOW_CHAT_S = 3.0
"""A chat that takes longer during a fault of the store is delayed by it: popi's own share is 50 ms."""
LONGEST_WAIT_S = 45.0
"""Within this every request is answered, come what may."""
FULL_MB = 24


@dataclass
class Stack:
    """A gateway, a worker, and clients, on one store."""

    case: Case
    folder: Path
    gateway: Gateway
    worker: Worker
    load: Load
    chats: int = 0

    async def acknowledged(self, more: int, seconds: float = 240.0) -> None:
        """Wait until clients have got so many more acknowledgements."""
        before, end = self.case.figures.get("acknowledged", 0), time.monotonic() + seconds
        while self.case.figures.get("acknowledged", 0) < before + more:
            if time.monotonic() > end:
                raise RuntimeError(f"only {self.case.figures.get('acknowledged', 0) - before} of {more} acknowledged")
            await asyncio.sleep(0.05)


@asynccontextmanager
async def stack(case: Case, folder: Path, store: str, seed: int) -> AsyncIterator[Stack]:
    """The stack, under load and with a chat now and then. At its end everything is checked."""
    model = ModelServer()
    await model.start()
    gateway, worker = Gateway(folder, store, model.url), Worker(folder, store, model.url)
    one = Stack(case, folder, gateway, worker, Load(case, gateway.url, CLIENTS, seed))
    chats: asyncio.Task[None] | None = None
    try:
        await gateway.start()
        await gateway.ready()
        await worker.start()
        one.load.start(0.01)
        await one.acknowledged(15)
        chats = asyncio.create_task(_chat(one))
        while not case.figures.get("app chats") and not chats.done():  # a key that was never checked may be refused
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)
        yield one
        await gateway.ready(30)
        await asyncio.sleep(1.0)
        await one.acknowledged(15)
        chats.cancel()
        await one.load.stop()
        await one.load.renewed()
        await one.load.check()
        for process in (gateway, worker):
            case.expect(process.runs, f"{process.log.name} has ended: {process.log.read_text()[-600:]}")
        case.figures["slowest answer s"] = round(one.load.slowest, 1)
        case.expect(one.load.slowest < LONGEST_WAIT_S, f"a request took {one.load.slowest:.0f} s")
    finally:
        if chats is not None:
            chats.cancel()
        await one.load.stop()
        for process in (worker, gateway):
            await process.stop()
        await model.stop()
    case.losses += tracebacks(folder)


async def _chat(one: Stack) -> None:
    """Chat with an app key, like an application: it must not notice much."""
    case, slowest = one.case, 0.0
    async with aiohttp.ClientSession(one.gateway.url, timeout=aiohttp.ClientTimeout(30)) as session:
        async with session.post("/keys", json={"scope": "app"}, headers=HEADERS) as made:
            key = (await made.json())["key"]
        question = {"model": "ok", "messages": [{"role": "user", "content": "x"}]}
        headers = {"authorization": f"Bearer {key}", "x-popi-user": "chatting"}
        while True:
            began = time.monotonic()
            async with session.post("/v1/chat/completions", json=question, headers=headers) as answer:
                reply = await answer.read()
                if answer.status != 200:
                    case.lost(f"a chat was answered {answer.status} {reply[:80]!r}")
            slowest = max(slowest, time.monotonic() - began)
            case.figures["slowest chat s"] = round(slowest, 2)
            case.count("app chats")
            if slowest > SLOW_CHAT_S:
                case.lost(f"a chat took {slowest:.1f} s")
                slowest = 0.0
            await asyncio.sleep(0.05)


Fault = Callable[[Stack], Awaitable[None]]


async def _locked(one: Stack, seconds: float) -> None:
    with closing(sqlite3.connect(one.folder / "popi.db", isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(seconds)
        other.execute("ROLLBACK")


async def _moved(one: Stack) -> None:
    file, away = one.folder / "popi.db", one.folder / "away.db"
    file.rename(away)
    await _nothing_acknowledged(one, 3.0)
    case, made = one.case, [name for name in ("popi.db",) if (one.folder / name).exists()]
    case.expect(not made, "an empty store was made in place of the missing one")
    (one.folder / "popi.db").unlink(missing_ok=True)
    away.rename(file)


async def _nothing_acknowledged(one: Stack, seconds: float) -> None:
    """Writes to a file that the next start won't find must not be acknowledged."""
    await asyncio.sleep(0.5)  # those under way
    client = Client(one.case, one.gateway.url, "missing", 1, one.load.clients[0]._random)
    end = time.monotonic() + seconds
    async with client.session() as session:
        while time.monotonic() < end:
            with suppress(Unanswered):
                sent = {"signals": [{"type": "statement", "text": "lost", "id": "lost"}]}
                status, reply, _ = await client.send(session, "POST", "/users/missing/signals", sent)
                if status == 200:
                    return one.case.lost("a write to a missing file was acknowledged")
            await asyncio.sleep(0.1)
    return None


async def _full(one: Stack) -> None:
    """Fill the disk under the store, and erase and write meanwhile."""
    ballast = one.folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    before = one.case.figures.get("answers 503", 0)
    await asyncio.sleep(4.0)
    one.case.count("refused while full", one.case.figures.get("answers 503", 0) - before)
    await one.gateway.kill()  # and while it is full, the gateway dies
    await one.load.stop()
    ballast.unlink()
    await one.gateway.start()
    await one.gateway.ready()
    await one.load.check()
    one.load.start(0.01)


@asynccontextmanager
async def _small_disk() -> AsyncIterator[Path]:
    if os.getuid() != 0:
        raise Skipped("a small disk can be mounted by root only")
    with tempfile.TemporaryDirectory() as folder:
        size = f"size={FULL_MB}m"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            raise Skipped(f"no small disk can be mounted here: {done.stderr.strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=False)


async def sqlite(report: Report, quick: bool, seed: int) -> None:
    """The faults of a file."""

    async def short(one: Stack) -> None:
        await _locked(one, SHORT_S)

    async def long(one: Stack) -> None:
        await _locked(one, LONG_S)

    faults: list[tuple[str, Fault]] = [(f"locked for {SHORT_S:.0f} s", short), ("moved and back", _moved)]
    if not quick:
        faults.append((f"locked for {LONG_S:.0f} s", long))
    for name, fault in faults:
        with report.case("store", name, "sqlite") as case, tempfile.TemporaryDirectory() as folder:
            async with stack(case, Path(folder), f"sqlite:///{folder}/popi.db", seed) as one:
                await fault(one)
            _intact(case, Path(folder))
    with report.case("store", "disk full", "sqlite") as case:
        async with _small_disk() as path:
            async with stack(case, path, f"sqlite:///{path}/popi.db", seed) as one:
                await _full(one)
            _intact(case, path)
    with report.case("store", "a missing folder at the start", "sqlite") as case:
        with tempfile.TemporaryDirectory() as folder:
            await _no_start(case, Path(folder), f"sqlite:///{folder}/nowhere/popi.db")


def _intact(case: Case, folder: Path) -> None:
    with closing(sqlite3.connect(folder / "popi.db")) as connection:
        whole = connection.execute("PRAGMA integrity_check").fetchone()
    case.expect(whole == ("ok",), f"the file is damaged: {whole}")


async def _no_start(case: Case, folder: Path, store: str) -> None:
    """A start without a store ends with a message, and no traceback."""
    gateway = Gateway(folder, store, "http://127.0.0.1:9")
    await gateway.start()
    end = time.monotonic() + 60
    while gateway.runs and time.monotonic() < end:
        await asyncio.sleep(0.05)
    case.expect(not gateway.runs, "it runs without a store")
    await gateway.kill()
    reply = gateway.log.read_text()
    case.expect("Traceback" not in reply and bool(reply.strip()), f"it question {reply[-200:]!r}")


async def postgresql(report: Report, server: Server, quick: bool, seed: int) -> None:
    """The faults of a server."""
    name = "stores"

    async def stopped(one: Stack) -> None:
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(SHORT_S)
        await asyncio.to_thread(server.start)

    async def terminated(one: Stack) -> None:
        kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        kill += f"WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        for _ in range(4 if quick else 20):
            [(number,)] = await server.query(name, kill)
            one.case.count("connections ended", int(str(number)))
            await asyncio.sleep(0.3)

    async def exhausted(one: Stack) -> None:
        """Others take every connection of the server, and the gateway's are cut."""
        taken: list[psycopg.Connection[Any]] = []
        try:
            with server.connect(name) as own:
                own.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                with suppress(psycopg.OperationalError):
                    while True:
                        taken.append(await asyncio.to_thread(server.connect))
            one.case.count("connections taken", len(taken))
            await asyncio.sleep(SHORT_S)
        finally:
            for each in taken:
                each.close()

    async def locked(one: Stack) -> None:
        with server.connect(name) as other, other.transaction():
            await asyncio.to_thread(other.execute, "LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(SHORT_S if quick else LONG_S)

    faults: list[tuple[str, Fault]] = [
        ("stopped and started", stopped),
        ("connections terminated", terminated),
        ("connections exhausted", exhausted),
        ("a table locked", locked),
    ]
    for about, fault in faults:
        with report.case("store", about, "postgresql") as case, tempfile.TemporaryDirectory() as folder:
            async with stack(case, Path(folder), server.database(name), seed) as one:
                await fault(one)
    with report.case("store", "no server at the start", "postgresql") as case:
        with tempfile.TemporaryDirectory() as folder:
            await _no_start(case, Path(folder), "postgresql://postgres@127.0.0.1:9/none")
