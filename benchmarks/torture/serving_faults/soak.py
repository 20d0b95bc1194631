"""A soak: many requests of every kind, with memory and descriptors flat."""

import asyncio
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from .cases import Case, Report
from .clients import Client, Unanswered
from .model import ModelServer
from .processes import Gateway, Process, Worker, tracebacks

CLIENTS = 12
FRESH = 500
"""Requests after which a client opens new connections."""
SAMPLES = 60
GROWTH_MB = 12.0
"""Megabytes that a process may grow by in the second half of the soak."""
DESCRIPTORS = 24
"""Descriptors by which the second half may exceed the first."""


@dataclass
class Sampled:
    """Memory and descriptors of one process over the requests so far."""

    process: Process
    rows: list[tuple[int, float, int]] = field(default_factory=list)

    def take(self, requests: int) -> None:
        self.rows.append((requests, *self.process.memory_and_files()))

    def slope(self) -> float:
        """Megabytes per 100,000 requests, by least squares over the second half."""
        rows = self.rows[len(self.rows) // 2 :]
        middle = sum(x for x, _, _ in rows) / len(rows), sum(y for _, y, _ in rows) / len(rows)
        across = sum((x - middle[0]) ** 2 for x, _, _ in rows) or 1.0
        return 1e5 * sum((x - middle[0]) * (y - middle[1]) for x, y, _ in rows) / across

    def judge(self, case: Case, name: str) -> None:
        half = self.rows[len(self.rows) // 2][0]
        early = [row for row in self.rows if row[0] <= half]
        late = [row for row in self.rows if row[0] >= half]
        grown = self.slope() * (late[-1][0] - late[0][0]) / 1e5
        files = max(n for _, _, n in early), max(n for _, _, n in late)
        case.figures |= {
            f"{name} MB at the half": round(late[0][1], 1),
            f"{name} MB at the end": round(late[-1][1], 1),
            f"{name} MB per 100,000": round(self.slope(), 2),
            f"{name} descriptors": f"{files[0]} then {files[1]}",
        }
        case.figures[f"{name} samples"] = self.rows if len(self.rows) > 10 else []
        case.expect(grown < GROWTH_MB, f"{name} grew by {grown:.1f} MB in the second half")
        case.expect(files[1] <= files[0] + DESCRIPTORS, f"{name}: {files[0]} descriptors, then {files[1]}")


class Soak:
    """The requests.

    Args:
        case: for losses and counts.
        url: the gateway's.
        total: number of requests.
        seed: of the mix.
    """

    def __init__(self, case: Case, url: str, total: int, seed: int) -> None:
        self._case, self._url, self.total, self.done = case, url, total, 0
        self._clients = [Client(case, url, f"s{n}", 4, random.Random(seed * 100 + n)) for n in range(CLIENTS)]
        self._random = random.Random(seed)

    async def run(self) -> None:
        await asyncio.gather(*(self._one(client) for client in self._clients))

    async def _one(self, client: Client) -> None:
        while self.done < self.total:
            async with client.session() as session:
                for _ in range(FRESH):
                    if self.done >= self.total:
                        return
                    self.done += 1
                    await self._request(session, client)

    async def _request(self, session: aiohttp.ClientSession, client: Client) -> None:
        chance, case = self._random.random(), self._case
        try:
            if chance < 0.72:
                await self._chat(session, chance < 0.36, chance < 0.06)
            elif chance < 0.97:
                ledger = self._random.choice(client.ledgers)
                if ledger.unsure_erased:  # the store refused the erasure, or not: it is repeated
                    await client._erase(session, ledger)
                else:
                    await client._act(session, ledger)
            elif chance < 0.98:
                async with session.get("/users/nobody-there") as answer:
                    case.expect(answer.status == 404, f"an unknown user: {answer.status}")
            elif chance < 0.99:
                async with session.post("/v1/chat/completions", data=b'{"model": ') as answer:
                    case.expect(answer.status == 400, f"half a body: {answer.status}")
            else:
                question = {"model": "error_500", "messages": [{"role": "user", "content": "x"}]}
                async with session.post("/v1/chat/completions", json=question) as answer:
                    case.expect(answer.status == 500, f"an error of the upstream: {answer.status}")
                    await answer.read()
        except Unanswered:
            pass  # 503 from a store that is too slow for this load, which is counted
        except (aiohttp.ClientError, TimeoutError) as error:
            case.lost(f"a request failed: {type(error).__name__} {error}")

    async def _chat(self, session: aiohttp.ClientSession, stream: bool, new: bool) -> None:
        """A chat of a known user, or of one who was never here before."""
        # Nobody who is erased meanwhile: a later chat would rightly bring them back.
        user = f"visitor-{self.done}" if new else f"chatting-{self._random.randrange(CLIENTS)}"
        word = f"word {self.done}"
        question = {"model": "ok", "stream": stream, "messages": [{"role": "user", "content": word}]}
        async with session.post("/v1/chat/completions", json=question, headers={"x-popi-user": user}) as answer:
            reply = await answer.read()
        right = answer.status == 200 and word.encode() in reply and (not stream or reply.endswith(b"data: [DONE]\n\n"))
        self._case.expect(right, f"a chat was answered {answer.status} {reply[:80]!r}")

    async def check(self) -> None:
        for one in self._clients:
            await one.check()


async def soak(report: Report, store: str, url: str, total: int, seed: int) -> None:
    """Send `total` requests to a gateway and its worker."""
    with report.case("soak", f"{total:,} requests", store) as case, tempfile.TemporaryDirectory() as folder:
        path, model = Path(folder), ModelServer()
        await model.start()
        at = url or f"sqlite:///{folder}/popi.db"
        gateway, worker = Gateway(path, at, model.url), Worker(path, at, model.url)
        try:
            await gateway.start()
            await gateway.ready()
            await worker.start()
            sampled = {"gateway": Sampled(gateway), "worker": Sampled(worker)}
            run = Soak(case, gateway.url, total, seed)
            began = time.monotonic()
            running, next_sample = asyncio.create_task(run.run()), 0
            while not running.done():
                if run.done >= next_sample:
                    for one in sampled.values():
                        one.take(run.done)
                    next_sample += max(1, total // SAMPLES)
                await asyncio.sleep(0.05)
                if len(case.losses) > 100:
                    run.total = 0
            await running
            case.figures |= {"requests": run.done, "a second": round(run.done / (time.monotonic() - began))}
            for name, one in sampled.items():
                one.take(run.done)
                one.judge(case, name)
            await run.check()
        finally:
            for process in (worker, gateway):
                await process.stop()
            await model.stop()
        case.losses += tracebacks(path)
