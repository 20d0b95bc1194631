"""Clients that write and read, and remember what was acknowledged; and the check of what is stored against that."""

import asyncio
import json
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from .cases import Case
from .processes import HEADERS

FULL = 150
"""Signals after which a client erases its user and begins again, so that exports stay short."""
TIMEOUT_S = 60.0


@dataclass
class Ledger:
    """What one user's client knows to be stored, to be gone, or neither.

    Attributes:
        kept: ids of acknowledged signals.
        maybe: ids of signals whose request got no answer.
        gone: ids of signals that an acknowledged erasure removed.
        groups: ids sent in one request, of which all or none are stored.
        versions: acknowledged edits.
        maybe_texts: edits whose request got no answer.
        use: the acknowledged switch; None if unknown.
        unsure_erased: an erasure got no answer: everything is stored, or nothing.
    """

    user: str
    kept: set[str] = field(default_factory=set)
    maybe: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    groups: list[set[str]] = field(default_factory=list)
    versions: dict[int, str] = field(default_factory=dict)
    maybe_texts: set[str] = field(default_factory=set)
    use: bool | None = None
    unsure_erased: bool = False

    def erased(self) -> None:
        self.gone |= self.kept | self.maybe
        self.kept, self.maybe, self.groups = set(), set(), []
        self.versions, self.maybe_texts, self.unsure_erased = {}, set(), False


class Unanswered(Exception):
    """A request got no answer that tells whether it was applied."""


class Client:
    """One client with users of its own, whose requests come one after another.

    Args:
        case: for losses and counts.
        url: the gateway's.
        name: prefix of its users' ids.
        users: how many.
        random_: decides what it does.
    """

    def __init__(self, case: Case, url: str, name: str, users: int, random_: random.Random) -> None:
        self.case, self._url, self._random = case, url, random_
        self.ledgers = [Ledger(f"{name}-{number}") for number in range(users)]
        self.stop, self.slowest = False, 0.0
        self._number, self._name = 0, name

    async def run(self, pause: float = 0.0) -> None:
        """Send requests until `stop` is set or the gateway is gone."""
        async with self.session() as session:
            while not self.stop:
                ledger = self._random.choice(self.ledgers)
                if ledger.unsure_erased:
                    await asyncio.sleep(0.01)
                    if all(one.unsure_erased for one in self.ledgers):
                        return
                    continue
                try:
                    await self._act(session, ledger)
                except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError):
                    self.case.count("cut")
                    return
                except Unanswered:
                    await asyncio.sleep(0.05)
                else:
                    self.case.count("acknowledged")
                if pause:
                    await asyncio.sleep(pause)

    def session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(self._url, headers=HEADERS, timeout=aiohttp.ClientTimeout(TIMEOUT_S))

    async def send(
        self, session: aiohttp.ClientSession, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, Any]:
        """Status, JSON and headers of an answer. Every error must be JSON that says what to do, without a traceback.

        Raises:
            Unanswered: 503; whatever was sent may be stored or not.
        """
        began = asyncio.get_running_loop().time()
        async with session.request(method, path, json=body, headers=headers) as answer:
            raw = await answer.read()
            status, named = answer.status, answer.headers
        self.slowest = max(self.slowest, asyncio.get_running_loop().time() - began)
        if status == 204:
            return status, None, named
        try:
            reply = json.loads(raw)
        except ValueError:
            self.case.lost(f"{method} {_route(path)}: {status} that is not JSON: {raw[:80]!r}")
            raise Unanswered from None
        if status >= 400 and not (isinstance(reply.get("error"), dict) and reply["error"].get("message")):
            self.case.lost(f"{method} {_route(path)}: {status} without a message")
        if b"Traceback" in raw:
            self.case.lost(f"{method} {_route(path)}: a traceback in the answer")
        if status >= 500:
            self.case.count(f"answers {status}")
            # A store that is too slow for the load is refused with 503, whatever the reason; it is counted.
            if status != 503 or "retry-after" not in named:
                self.case.lost(f"{method} {_route(path)}: {status} {reply.get('error')}")
            raise Unanswered
        return status, reply, named

    async def _act(self, session: aiohttp.ClientSession, ledger: Ledger) -> None:
        if len(ledger.kept) > FULL:
            return await self._erase(session, ledger)
        chance = self._random.random()
        for share, act in (
            (0.45, self._add),
            (0.10, self._repeat),
            (0.15, self._edit),
            (0.10, self._feedback),
            (0.05, self._switch),
            (0.12, self._read),
            (0.03, self._erase),
        ):
            if chance < share:
                return await act(session, ledger)
            chance -= share

    def _new_id(self) -> str:
        self._number += 1
        return f"{self._name}:{self._number}"

    async def _add(self, session: aiohttp.ClientSession, ledger: Ledger) -> None:
        ids = {self._new_id() for _ in range(self._random.choice((1, 1, 3)))}
        ledger.groups.append(ids)
        await self._post(session, ledger, ids)

    async def _post(self, session: aiohttp.ClientSession, ledger: Ledger, ids: set[str]) -> None:
        known = len(ids & ledger.kept)
        ledger.maybe |= ids - ledger.kept
        sent = {"signals": [{"type": "statement", "text": f"says {one}", "id": one} for one in sorted(ids)]}
        sure = not ids & ledger.maybe or known == len(ids)
        status, reply, _ = await self.send(session, "POST", f"/users/{ledger.user}/signals", sent)
        if status != 200:
            return self.case.lost(f"signals were refused: {status} {reply}")
        ledger.maybe -= ids
        ledger.kept |= ids
        if sure and reply["added"] != len(ids) - known:
            self.case.lost(f"{reply['added']} signals added instead of {len(ids) - known}")
        return None

    async def _repeat(self, session: aiohttp.ClientSession, ledger: Ledger) -> None:
        """Send again what may or may not have arrived, with the same ids."""
        again = set(self._random.sample(sorted(ledger.kept | ledger.maybe), min(2, len(ledger.kept | ledger.maybe))))
        if again:
            # Afterwards a request of which they were part may be stored in part, although it was not applied.
            ledger.groups = [group for group in ledger.groups if not group & again]
            await self._post(session, ledger, again)
            self.case.count("repeated")

    async def _edit(self, session: aiohttp.ClientSession, ledger: Ledger) -> None:
        status, reply, _ = await self.send(session, "GET", f"/users/{ledger.user}/summary")
        version = reply["version"] if status == 200 else 0
        text = f"Likes {self._new_id()}."
        ledger.maybe_texts.add(text)
        match = {"if-match": str(version)}
        status, reply, _ = await self.send(session, "PUT", f"/users/{ledger.user}/summary", {"text": text}, **match)
        if status == 200:
            ledger.versions[reply["version"]] = text
            if reply["version"] != version + 1:
                self.case.lost(f"an edit of version {version} became version {reply['version']}")
        elif status != 412:  # the worker wrote a version in between
            self.case.lost(f"an edit was refused: {status} {reply}")
        ledger.maybe_texts.discard(text)

    async def _feedback(self, session: aiohttp.ClientSession, ledger: Ledger) -> None:
        word = self._new_id()
        chat = {"model": "ok", "messages": [{"role": "user", "content": word}]}
        status, reply, headers = await self.send(
            session, "POST", "/v1/chat/completions", chat, **{"x-popi-user": ledger.user}
        )
        if status != 200 or reply["choices"][0]["message"]["content"] != word:
            return self.case.lost(f"a chat was answered {status} {reply}")
        self.case.count("chats")
        given = {"answer": headers.get("x-popi-answer-id", ""), "thumbs": self._random.choice(("up", "down"))}
        ledger.maybe.add(f"feedback on {given['answer']}")
        for _ in range(50):  # answers are stored in the background
            status, reply, _ = await self.send(session, "POST", f"/users/{ledger.user}/feedback", given)
            if status != 404:
                break
            await asyncio.sleep(0.05)
        ledger.maybe.discard(f"feedback on {given['answer']}")
        if status == 404:  # the store may have failed when it was to be written: that is logged, and no signal exists
            return self.case.count("answers not stored")
        if status != 200:
            return self.case.lost(f"feedback was refused: {status} {reply}")
        ledger.kept |= set(reply["ids"])
        status, again, _ = await self.send(session, "POST", f"/users/{ledger.user}/feedback", given)
        if status == 200 and (again["added"] or again["ids"] != reply["ids"]):
            self.case.lost("the same feedback twice became two signals")
        return None

    async def _switch(self, session: aiohttp.ClientSession, ledger: Ledger) -> None:
        use, ledger.use = self._random.random() < 0.5, None
        status, reply, _ = await self.send(session, "PUT", f"/users/{ledger.user}/controls", {"use": use})
        if status != 200 or reply["use"] != use:
            return self.case.lost(f"a switch was answered {status} {reply}")
        ledger.use = use
        return None

    async def _read(self, session: aiohttp.ClientSession, ledger: Ledger) -> None:
        status, reply, _ = await self.send(session, "GET", f"/users/{ledger.user}/summary")
        newest = max(ledger.versions, default=0)
        if newest and (status != 200 or reply["version"] < newest):
            self.case.lost(f"version {newest} was acknowledged, and a read then gave {status} {reply}")

    async def _erase(self, session: aiohttp.ClientSession, ledger: Ledger) -> None:
        ledger.unsure_erased = True
        status, reply, _ = await self.send(session, "DELETE", f"/users/{ledger.user}")
        if status != 200:
            ledger.unsure_erased = False
            return self.case.lost(f"an erasure was refused: {status} {reply}")
        ledger.erased()
        self.case.count("erasures")
        status, reply, _ = await self.send(session, "GET", f"/users/{ledger.user}")
        if status != 404:
            self.case.lost(f"an erased user was read: {status} {reply}")
        return None

    async def check(self) -> None:
        """Compare what is stored to what was acknowledged, and take over what had no answer."""
        async with self.session() as session:
            for ledger in self.ledgers:
                status, reply, _ = await self.send(session, "GET", f"/users/{ledger.user}/export")
                if status not in (200, 404):
                    self.case.lost(f"an export was answered {status} {reply}")
                    continue
                self._compare(ledger, reply if status == 200 else {"signals": [], "versions": []})
                if ledger.use is not None:
                    _, reply, _ = await self.send(session, "GET", f"/users/{ledger.user}/controls")
                    self.case.expect(reply["use"] == ledger.use, "an acknowledged switch was lost")

    def _compare(self, ledger: Ledger, stored: dict[str, Any]) -> None:
        case, names = self.case, [one["id"] for one in stored["signals"]]
        stored_ids = set(names)
        case.count("signals checked", len(stored_ids))
        if len(names) != len(stored_ids):
            case.lost(f"{len(names) - len(stored_ids)} signals are stored twice")
        if back := stored_ids & ledger.gone:
            case.lost(f"{len(back)} signals of an erased user are back")
        if ledger.unsure_erased and not stored_ids and not stored["versions"]:
            return ledger.erased()
        if missing := ledger.kept - stored_ids:
            case.lost(f"{len(missing)} acknowledged signals are missing, such as {min(missing)}")
        feedback_in_doubt = any(one.startswith("feedback on") for one in ledger.maybe)
        if (extra := stored_ids - ledger.kept - ledger.maybe) and not feedback_in_doubt:
            case.lost(f"{len(extra)} signals were never sent, such as {min(extra)}")
        for group in ledger.groups:
            if stored_ids & group and not group <= stored_ids:
                case.lost("a request was applied in part")
        texts = {one["version"]: one["text"] for one in stored["versions"]}
        recent = {number for number in ledger.versions if number > max(texts, default=0) - 90}
        for number in recent:
            if texts.get(number) != ledger.versions[number]:
                case.lost(f"acknowledged version {number} is {texts.get(number)!r}")
        ledger.kept, ledger.maybe, ledger.groups = stored_ids, set(), []
        ledger.versions = {n: text for n, text in ledger.versions.items() if n in recent}
        ledger.maybe_texts, ledger.unsure_erased = set(), False
        return None


class Load:
    """Several clients at once."""

    def __init__(self, case: Case, url: str, clients: int, seed: int, users: int = 3) -> None:
        self.case = case
        self.clients = [
            Client(case, url, f"u{number}", users, random.Random(seed * 1000 + number)) for number in range(clients)
        ]
        self._running: list[asyncio.Task[None]] = []

    def start(self, pause: float = 0.0) -> None:
        for one in self.clients:
            one.stop = False
        self._running = [asyncio.create_task(one.run(pause)) for one in self.clients]

    async def stop(self) -> None:
        for one in self.clients:
            one.stop = True
        for task in self._running:
            await task

    async def check(self) -> None:
        for one in self.clients:
            await one.check()

    @property
    def slowest(self) -> float:
        return max(one.slowest for one in self.clients)

    async def renewed(self, seconds: float = 60.0) -> None:
        """Wait until every summary is up to date: no job may be lost, run forever or wait for the future."""
        one, loop = self.clients[0], asyncio.get_running_loop()
        end, waiting = loop.time() + seconds, [ledger.user for each in self.clients for ledger in each.ledgers]
        last: Any = None
        async with one.session() as session:
            while waiting and loop.time() < end:
                for user in list(waiting):
                    with suppress(Unanswered):
                        status, reply, _ = await one.send(session, "GET", f"/users/{user}")
                        if status == 404 or (status == 200 and reply["renewal"] is None):
                            waiting.remove(user)
                            has_summary = status == 404 or reply["summary"] is not None or not reply["signals"]
                            self.case.expect(has_summary, "signals without a summary or a job: a job was lost")
                        else:
                            last = reply.get("renewal")
                await asyncio.sleep(0.1)
        if waiting:
            self.case.lost(f"{len(waiting)} renewals were not done after {seconds:.0f} s, such as {last}")


def _route(path: str) -> str:
    return "/".join(part if not part.startswith("u") or part == "users" else "…" for part in path.split("/"))
