"""Broken upstreams: what a client sees through the gateway is what it would see from the upstream, or a plain error.

Each fault is asked for directly and through the gateway, streamed and not. A response is whole, or the client can tell
that it isn't; the upstream's connection is not used again after a broken answer; others are not delayed meanwhile.
"""

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import aiohttp

from .cases import Case, Report
from .clients import Load
from .model import DRIP_S, PIECES, SLOW_S, ModelServer, cut, error_500, invalid_json, length_too_long, writes
from .processes import HEADERS, Gateway, Worker, tracebacks

PASSES = ("slow_first_byte", "slow_drip")
"""Slow, but whole."""
CUT = ("cut", "cut_hard", "length_too_long", "bad_chunk")
"""The client must see that the answer is not whole, or get the gateway's own error if the response has not begun."""
SHORT = "length_too_short"
"""The client gets as many bytes as were announced, or an error; and nobody gets the rest."""
AS_SENT = ("invalid_json", "error_500", "error_html")
"""Nothing that a relay can repair: the client must see what the upstream sent."""
REFUSED = ("no_answer", "not_http", "endless_head")
"""There is no answer to pass on: the gateway answers 502 itself."""
AT_ONCE = 40
"""Slow requests at the same time, while others must go on."""
BESIDE = 5
"""Requests of others at the same time, more than one kept connection could carry."""
KEPT_S = 5.0
"""After this the gateway has closed its idle connections to the upstream, and needs new ones."""
FROZEN_S = 1.0
"""An answer to others that takes this much longer than without slow requests would be frozen."""


class Seen(NamedTuple):
    """What a client saw: the status (0: no response), the body, whether it knows that it's whole, and when it began."""

    status: int
    body: bytes
    whole: bool
    first_s: float
    last_s: float


async def ask(session: aiohttp.ClientSession, url: str, model: str, word: str, stream: bool, path: str) -> Seen:
    question = {"model": model, "stream": stream, "max_tokens": 9, "messages": [{"role": "user", "content": word}]}
    began, first, body, status = time.monotonic(), 0.0, b"", 0
    try:
        async with session.post(f"{url}/v1/{path}", json=question, headers=HEADERS) as answer:
            status = answer.status
            async for piece in answer.content.iter_any():
                first = first or time.monotonic() - began
                body += piece
        whole = True
    except (aiohttp.ClientError, TimeoutError):
        whole = False
    return Seen(status, body, whole, first, time.monotonic() - began)


async def all_faults(report: Report) -> None:
    """Every fault, streamed and not, for both dialects."""
    model = ModelServer()
    await model.start()
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(Path(folder), f"sqlite:///{folder}/popi.db", model.url)
        await gateway.start()
        await gateway.ready()
        timeout = aiohttp.ClientTimeout(60)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                for fault in (*PASSES, *CUT, SHORT, *AS_SENT, *REFUSED):
                    with report.case("upstream", fault.replace("_", " ")) as case:
                        await _one_fault(case, session, gateway, model, fault)
                with report.case("upstream", "refused connections, and back") as case:
                    await _gone_and_back(case, session, gateway, model)
                with report.case("upstream", f"others beside {AT_ONCE} slow requests") as case:
                    await _others(case, session, gateway)
                with report.case("upstream", "clients that hang up") as case:
                    await _hang_up(case, session, gateway)
        finally:
            await gateway.stop()
            await model.stop()
        with report.case("upstream", "no traceback in the log") as case:
            case.losses += tracebacks(Path(folder))
    with report.case("upstream", f"another upstream beside {AT_ONCE} slow requests") as case:
        await _another(case)


async def _one_fault(
    case: Case, session: aiohttp.ClientSession, gateway: Gateway, model: ModelServer, fault: str
) -> None:
    for path in ("chat/completions", "messages"):
        for stream in (False, True):
            where = f"{path}{' streamed' if stream else ''}"
            word = f"word-{fault}-{stream}"
            direct, seen = await asyncio.gather(
                ask(session, model.url, fault, word, stream, path), ask(session, gateway.url, fault, word, stream, path)
            )
            case.count("answers")
            if fault in PASSES:
                case.expect(seen.whole and seen.body == direct.body, f"{where}: not the upstream's answer")
            if fault == "slow_drip":
                case.expect(seen.first_s < seen.last_s / 2, f"{where}: the first byte came with the last")
            elif fault in CUT:
                if seen.whole:
                    _expect_error(case, seen, where, 502)
            elif fault == SHORT:
                case.expect(b"FORGED" not in seen.body, f"{where}: more was passed on than announced")
                if seen.whole and seen.status != 200:
                    _expect_error(case, seen, where, 502)
            elif fault in AS_SENT:
                same = (seen.status, seen.body) == (direct.status, direct.body)
                case.expect(
                    same, f"{where}: {seen.status} {seen.body[:60]!r}, not {direct.status} {direct.body[:60]!r}"
                )
            elif fault in REFUSED:
                _expect_error(case, seen, where, 502)
            after = await ask(session, gateway.url, "ok", f"after {word}", False, "chat/completions")
            reply = json.loads(after.body)["choices"][0]["message"]["content"] if after.status == 200 else after
            case.expect(reply == f"after {word}", f"{where}: the next answer was {reply}")


def _expect_error(case: Case, seen: Seen, where: str, status: int) -> None:
    """The gateway's own error, in JSON."""
    try:
        message = json.loads(seen.body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = ""
    right = seen.status == status and seen.whole and message
    case.expect(bool(right), f"{where}: {seen.status} {seen.body[:80]!r} instead of {status} in JSON")


async def _gone_and_back(case: Case, session: aiohttp.ClientSession, gateway: Gateway, model: ModelServer) -> None:
    for round_ in range(3):
        await model.stop()
        for _ in range(3):
            _expect_error(case, await ask(session, gateway.url, "ok", "x", False, "chat/completions"), "gone", 502)
        await model.start()
        seen = await ask(session, gateway.url, "ok", "x", True, "chat/completions")
        case.expect(seen.status == 200 and seen.whole, f"back: {seen.status} in round {round_}")
        case.count("times")


async def _latencies(session: aiohttp.ClientSession, gateway: Gateway, seconds: float) -> list[float]:
    taken, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        each = (ask(session, gateway.url, "ok", "x", False, "chat/completions") for _ in range(BESIDE))
        for seen in await asyncio.gather(*each):
            if seen.status != 200:
                raise RuntimeError(f"others were answered {seen.status} {seen.body[:100]!r}")
            taken.append(seen.last_s)
        await asyncio.sleep(0.01)
    return sorted(taken)


async def _others(
    case: Case, session: aiohttp.ClientSession, gateway: Gateway, faults: tuple[str, ...] = PASSES
) -> None:
    before = await _latencies(session, gateway, 2.0)
    await asyncio.sleep(KEPT_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as many:
        slow = [
            asyncio.create_task(ask(many, gateway.url, faults[n % len(faults)], "x", n % 4 < 2, "chat/completions"))
            for n in range(AT_ONCE)
        ]
        await asyncio.sleep(0.5)  # they come first
        during = await _latencies(session, gateway, min(SLOW_S, DRIP_S * PIECES * 1.5))
        for seen in await asyncio.gather(*slow):
            case.expect(seen.whole and seen.status == 200, f"a slow answer was not whole: {seen.status}")
    case.figures |= {"ms before": before[len(before) // 2] * 1e3, "ms during": during[len(during) // 2] * 1e3}
    case.figures["slowest ms"] = during[-1] * 1e3
    case.expect(during[-1] < before[-1] + FROZEN_S, f"an answer to others took {during[-1]:.1f} s")


async def _another(case: Case) -> None:
    """One of two upstreams is slow, and has as many requests as connections are allowed: the other must not notice."""
    slow, fast = ModelServer(), ModelServer()
    await slow.start()
    await fast.start()
    with tempfile.TemporaryDirectory() as folder:
        tables = [f"[http]\nconnections = {AT_ONCE // 2}\nconnect_timeout_s = 30"]
        for name, server, models in (("slow", slow, "slow_*"), ("fast", fast, "ok")):
            tables.append(f'[[proxy.upstreams]]\nname = "{name}"\nurl = "{server.url}"\nmodels = ["{models}"]')
        (Path(folder) / "gateway.toml").write_text("\n".join(tables))
        gateway = Gateway(Path(folder), f"sqlite:///{folder}/popi.db", None)
        await gateway.start()
        try:
            await gateway.ready()
            async with aiohttp.ClientSession() as session:
                await _others(case, session, gateway, ("slow_first_byte",))
        finally:
            await gateway.stop()
            await slow.stop()
            await fast.stop()


async def _hang_up(case: Case, session: aiohttp.ClientSession, gateway: Gateway) -> None:
    """Clients go in the middle of slow answers: nothing of them stays open."""
    _, before = gateway.memory_and_files()
    for _ in range(3):
        async with aiohttp.ClientSession() as hurried:
            asked = [
                asyncio.create_task(ask(hurried, gateway.url, "slow_drip", "x", True, "chat/completions"))
                for _ in range(20)
            ]
            await asyncio.sleep(0.3)
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
    end, after = time.monotonic() + 20, 0
    while time.monotonic() < end:
        _, after = gateway.memory_and_files()
        if after <= before + 2:
            break
        await asyncio.sleep(0.2)
    case.figures |= {"descriptors before": before, "after": after}
    case.expect(after <= before + 2, f"{after - before} descriptors are still open after 20 s")


WRITER_FAULTS = {"500": error_500, "cut": cut, "too short": length_too_long, "invalid JSON": invalid_json}


async def renewals(report: Report, store: str, url: str, seed: int) -> None:
    """The model that writes summaries fails in every way, then comes back: every renewal is done, none given up."""
    with report.case("upstream", "renewals while the model fails", store) as case:
        with tempfile.TemporaryDirectory() as folder:
            path, model = Path(folder), ModelServer()
            await model.start()
            url = url or f"sqlite:///{folder}/popi.db"
            gateway, worker = Gateway(path, url, model.url), Worker(path, url, model.url)
            load = Load(case, gateway.url, 2, seed)
            try:
                await gateway.start()
                await gateway.ready()
                await worker.start()
                for fault in WRITER_FAULTS.values():
                    model.writer = fault
                    await _while(load, case, 25)
                await model.stop()
                await asyncio.sleep(1.0)
                await model.start()
                model.writer = writes
                await load.renewed()
                await load.check()
                case.count("calls of the model", model.received_by_writer)
                case.expect(worker.runs, "the worker has ended")
            finally:
                for one in (worker, gateway):
                    await one.stop()
                await model.stop()
            case.losses += tracebacks(path)


async def _while(load: Load, case: Case, acknowledged: int) -> None:
    before = case.figures.get("acknowledged", 0)
    load.start()
    while case.figures.get("acknowledged", 0) < before + acknowledged and len(case.losses) < 20:
        await asyncio.sleep(0.02)
    await load.stop()
