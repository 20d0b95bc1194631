"""Many concurrent users: nobody gets a byte of another user's data, whatever clients do meanwhile."""

import asyncio
import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest
from end_to_end.gateway_process import ADMIN, running
from page_stack import served

MARK = re.compile(r"(?:mark|nonce)-[0-9a-z-]+")
USERS, AT_ONCE = 20, 48


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An upstream that echoes the request in pieces, some of them delayed."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    chance = random.Random(body)
    answer = json.dumps({"id": "x", "echo": body.decode()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    while answer:
        size = chance.randint(1, 400)
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() * 0.01)
        await send({"type": "http.response.body", "body": answer[:size], "more_body": True})
        answer = answer[size:]
    await send({"type": "http.response.body", "body": b""})


class Clients:
    """Clients' requests, with counts of the outcomes."""

    def __init__(self, url: str, keys: dict[str, str]) -> None:
        self.url, self.keys = url, keys
        self.counts: Counter[str] = Counter()
        self.chance = random.Random(0)

    async def one(self, client: httpx2.AsyncClient, n: int) -> None:
        tenant, user = self.chance.choice("ab"), self.chance.randrange(USERS)
        nonce = f"nonce-{n}-end"
        body = {"model": "m", "messages": [{"role": "user", "content": nonce}], "user": f"u{user}"}
        kind = self.chance.choices(("app", "user", "other", "wrong", "leaves"), (60, 20, 5, 5, 10))[0]
        key = self.keys[tenant] if kind in ("app", "leaves") else self.keys[f"{tenant}-u{user}"]
        if kind == "other":
            body["user"] = f"u{(user + 1) % USERS}"
        if kind == "wrong":
            key = key[:-3] + "xyz"
        request = client.build_request(
            "POST", "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
        )
        reply = await client.send(request, stream=True)
        text = ""
        async for piece in reply.aiter_text():
            text += piece
            if kind == "leaves" and self.chance.random() < 0.5:
                break
        await reply.aclose()
        self.counts[kind] += 1
        seen = set(MARK.findall(text))
        if kind in ("other", "wrong"):
            assert reply.status_code == (403 if kind == "other" else 401) and not seen, text
            return
        own = {f"mark-{tenant}-u{user}-end", nonce}
        assert reply.status_code == 200
        assert seen == own if kind != "leaves" else {mark for mark in seen if mark.endswith("-end")} <= own, (own, seen)

    async def all(self, times: int) -> None:
        gate = asyncio.Semaphore(AT_ONCE)

        async def gated(client: httpx2.AsyncClient, n: int) -> None:
            async with gate:
                await self.one(client, n)

        async with httpx2.AsyncClient(base_url=self.url, timeout=60, trust_env=False) as client:
            await asyncio.gather(*(gated(client, n) for n in range(times)))


def crossed(folder: Path, times: int) -> Counter[str]:
    from popi.serving.keys import create
    from popi.serving.store.database import Database

    store = f"sqlite:///{folder}/popi.db"
    database = Database.open(store)
    keys = {tenant: create(database, "app", tenant)[0] for tenant in "ab"}
    keys |= {f"{t}-u{n}": create(database, "user", t, f"u{n}")[0] for t in "ab" for n in range(USERS)}
    database.close()
    settings = folder / "gateway.toml"
    settings.write_text("[proxy]\nsummary_timeout_ms = 20000\n[server]\nwrong_keys_per_s = 1000\n")
    # Every chat waits for its summary even on a busy machine, and all wrong keys come from one address.
    with served(echo) as upstream_url, running(store, "--config", str(settings), upstream=upstream_url) as gateway:
        with httpx2.Client(base_url=gateway.url, headers={"authorization": f"Bearer {ADMIN}"}) as admin:
            for tenant in "ab":
                for n in range(USERS):
                    edit = {"text": f"Likes mark-{tenant}-u{n}-end."}
                    headers = {"x-popi-tenant": tenant}
                    assert admin.put(f"/users/u{n}/summary", json=edit, headers=headers).status_code == 200
        clients = Clients(gateway.url, keys)
        asyncio.run(clients.all(times))
    return clients.counts


def test_no_exchange_gets_anothers_bytes(tmp_path: Path) -> None:
    counts = crossed(tmp_path, 1_500)
    assert sum(counts.values()) == 1_500 and min(counts.values()) > 20


@pytest.mark.slow
def test_no_exchange_of_many_gets_anothers_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = int(os.environ.get("POPI_EXCHANGES", "20000"))
    counts = crossed(tmp_path, times)
    with capsys.disabled():
        print(f"\n{sum(counts.values())} exchanges: {dict(counts)}")
