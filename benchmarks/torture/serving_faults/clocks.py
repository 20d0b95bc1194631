"""A clock that goes forward by hours, and back: under load, and while workers and gateways are killed.

Both gateway and worker have the wrong clock (see forks.py); monotonic time goes on.
"""

import asyncio
import random
import tempfile
import time
from pathlib import Path

import aiohttp

from .cases import Report
from .clients import Client, Load
from .model import ModelServer
from .postgres import Server
from .processes import HEADERS, Gateway, Worker, tracebacks

CLIENTS = 3
HOURS = 5.0
CORRECTED_S = 45.0
"""Within this everything that waits for the future must be due again: popi looks every 30 s."""


async def jumps(report: Report, store: str, server: Server | None, quick: bool, seed: int) -> None:
    """Forward, work, kill the worker with its leases, and back; then backward, work, and forward again."""
    both = ((f"{HOURS:.0f} hours ahead, then right", HOURS), (f"{HOURS:.0f} hours behind, then right", -HOURS))
    for name, hours in both[:1] if quick else both:
        with report.case("clock", name, store) as case, tempfile.TemporaryDirectory() as folder:
            path, model = Path(folder), ModelServer()
            await model.start()
            clock = path / "clock"
            clock.write_text("0")
            at = server.database("clock") if server is not None else f"sqlite:///{folder}/popi.db"
            gateway = Gateway(path, at, model.url, clock=clock)
            worker = Worker(path, at, model.url, clock=clock)
            load = Load(case, gateway.url, CLIENTS, seed)
            back = Client(case, gateway.url, "back", 1, random.Random(seed))
            try:
                await gateway.start()
                await gateway.ready()
                await worker.start()
                load.start()
                await _acknowledged(case.figures, 30)
                clock.write_text(str(hours * 3600))
                await _acknowledged(case.figures, 60)
                await worker.kill()  # its leases are from the wrong time, and jobs remain
                link = await _link(gateway)
                await _erased(back)
                await _acknowledged(case.figures, 30)
                clock.write_text("0")
                began = time.monotonic()
                await worker.start()
                await _acknowledged(case.figures, 30)
                await load.stop()
                await load.renewed(CORRECTED_S)
                case.figures["s until renewed"] = round(time.monotonic() - began, 1)
                await load.check()
                if hours > 0:
                    case.expect(not await _opens(gateway, link), "a link from the future opens hours later")
                case.expect(await _opens(gateway, await _link(gateway)), "a new link does not open")
                await asyncio.sleep(10.0)  # popi looks for erasures in the future every 10 s
                await _chat_is_stored(back)
            finally:
                await load.stop()
                for one in (worker, gateway):
                    await one.stop()
                await model.stop()
            case.losses += tracebacks(path)


async def _acknowledged(figures: dict[str, float], more: int) -> None:
    before, end = figures.get("acknowledged", 0), time.monotonic() + 90
    while figures.get("acknowledged", 0) < before + more:
        if time.monotonic() > end:
            raise RuntimeError("clients get no more acknowledgements")
        await asyncio.sleep(0.05)


async def _link(gateway: Gateway) -> str:
    """A link to a user's page."""
    async with aiohttp.ClientSession(gateway.url, headers=HEADERS) as session:
        async with session.post("/users/linked/link") as answer:
            return str((await answer.json())["url"])


async def _opens(gateway: Gateway, link: str) -> bool:
    """Whether a link opens the user's page, as a browser would follow it."""
    token = link.split("link=", 1)[1]
    async with aiohttp.ClientSession(gateway.url) as session:
        async with session.get(f"/me?link={token}", allow_redirects=False) as answer:
            return "set-cookie" in answer.headers


async def _erased(client: Client) -> None:
    """A user is erased while the clock is wrong, and comes back at once."""
    async with client.session() as session:
        await client._add(session, client.ledgers[0])
        await client._erase(session, client.ledgers[0])
        await client._add(session, client.ledgers[0])


async def _chat_is_stored(client: Client) -> None:
    """That user chats and gives feedback on the answer, which must have been stored."""
    async with client.session() as session:
        before = client.case.figures.get("answers not stored", 0)
        await client._feedback(session, client.ledgers[0])
        stored = client.case.figures.get("answers not stored", 0) == before
        client.case.expect(stored, "an answer was not stored, so feedback on it is impossible")
