"""SIGKILL at random moments: of gateways and workers under load, at their start, and during a migration."""

import asyncio
import random
import sqlite3
import tempfile
from pathlib import Path

from .cases import Case, Report
from .clients import Load
from .model import ModelServer
from .postgres import Server
from .processes import Gateway, Process, Worker, tracebacks

CLIENTS = 6
KINDS = ("gateway", "gateway", "gateway", "worker", "both", "start")
LONGEST_S = 0.8
"""Seconds of load before a kill, at most."""
START_S = 1.5
"""Seconds within which a start is killed."""
ACKNOWLEDGED = 25
"""Acknowledged requests between two kills, at least."""


async def under_load(report: Report, store: str, url: str, name: str, times: int, seed: int) -> None:
    """Kill `times` times, and check after each."""
    chance = random.Random(seed)
    with report.case("kill", "under load", store) as case, tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        if not url:
            url = f"sqlite:///{path}/popi.db"
        model = ModelServer()
        await model.start()
        gateway, worker = Gateway(path, url, model.url), Worker(path, url, model.url)
        load = Load(case, gateway.url, CLIENTS, seed)
        try:
            await gateway.start()
            await worker.start()
            await gateway.ready()
            for _ in range(times):
                await _one_kill(case, chance, load, gateway, worker)
            await load.renewed()
            await load.check()
            case.count("summaries written", model.received_by_writer)
            if url.startswith("sqlite"):
                await gateway.stop()
                with sqlite3.connect(path / "popi.db") as connection:
                    whole = connection.execute("PRAGMA integrity_check").fetchone()
                case.expect(whole == ("ok",), f"the file is damaged: {whole}")
        finally:
            for one in (gateway, worker):
                await one.kill()
            await model.stop()
        case.losses += tracebacks(path)


async def _one_kill(case: Case, chance: random.Random, load: Load, gateway: Gateway, worker: Worker) -> None:
    kind = chance.choice(KINDS)
    before = case.figures.get("acknowledged", 0)
    load.start()
    while case.figures.get("acknowledged", 0) < before + ACKNOWLEDGED:
        await asyncio.sleep(0.01)
        if case.losses and len(case.losses) > 50:
            raise RuntimeError("too many losses")
    await asyncio.sleep(chance.random() * LONGEST_S)
    case.count("kills")
    case.count(f"of {kind}")
    if kind == "worker":
        await worker.kill()
        await worker.start()
        await asyncio.sleep(chance.random() * LONGEST_S)
        await load.stop()
        await load.check()
        return
    await gateway.kill()
    if kind == "both":
        await worker.kill()
    await load.stop()
    if kind == "start":
        await gateway.start()
        await asyncio.sleep(chance.random() * START_S)
        await gateway.kill()
    if kind == "both":
        await worker.start()
    await gateway.start()
    await gateway.ready()
    await load.check()


async def at_migration(report: Report, store: str, server: Server | None, times: int, seed: int) -> None:
    """Kill the first start on an empty store while it makes the tables; the next start must find or make them all."""
    chance = random.Random(seed + 1)
    with report.case("kill", "migration", store) as case, tempfile.TemporaryDirectory() as folder:
        model = ModelServer()
        await model.start()
        for number in range(times):
            path = Path(folder) / str(number)
            path.mkdir()
            name = f"migration_{number}"
            url = f"sqlite:///{path}/popi.db" if server is None else server.database(name)
            gateway = Gateway(path, url, model.url)
            await gateway.start()
            await _migrating(path, server, name, gateway)
            await asyncio.sleep(chance.random() * 0.08)
            await gateway.kill()
            case.count("kills")
            if await _tables(path, server, name):
                case.count("after the commit")
            try:
                await gateway.start()
                await gateway.ready()
                load = Load(case, gateway.url, 1, seed)
                load.start()
                while case.figures.get("acknowledged", 0) < 3 * (number + 1) and not case.losses:
                    await asyncio.sleep(0.01)
                await load.stop()
                await load.check()
            finally:
                await gateway.kill()
            case.losses += tracebacks(path)
        await model.stop()


async def _migrating(path: Path, server: Server | None, name: str, gateway: Process) -> None:
    """Wait until the process has begun to make tables."""
    while gateway.runs:
        if server is None:
            if (path / "popi.db").exists():
                return
            await asyncio.sleep(0.001)
        else:
            busy = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
            if await server.query(name, busy):
                return
            await asyncio.sleep(0.005)


async def _tables(path: Path, server: Server | None, name: str) -> bool:
    """Whether the migrations are committed."""
    if server is not None:
        return (await server.query(name, "SELECT to_regclass('popi_migrations')"))[0][0] is not None
    with sqlite3.connect(path / "popi.db") as connection:
        return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'popi_migrations'").fetchone())
