"""Thousands of wrong keys, links and cookies: valid ones keep working, from elsewhere or if known before."""

import asyncio
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import httpx2
import pytest
from end_to_end.bystanders import USERS, Attacked, attacked, others_served
from end_to_end.gateway_process import ADMIN

pytestmark = pytest.mark.timed

SECONDS = 2.0


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    with attacked(
        tmp_path_factory.mktemp("store"), "[proxy]\nsummary_timeout_ms = 300\n[server]\nwrong_keys_per_s = 0.01\n"
    ) as made:
        yield made


def wrong_key() -> str:
    return f"popi_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


def from_address(target: Attacked, address: str, **more: Any) -> httpx2.Client:
    transport = httpx2.HTTPTransport(local_address=address)
    return httpx2.Client(base_url=target.gateway.url, transport=transport, timeout=20, **more)


def flood(target: Attacked, addresses: list[str], connections: int, path: str) -> Counter[int]:
    """Send a new wrong key with every request over many connections; returns counts of the statuses."""
    statuses, end = Counter[int](), time.monotonic() + SECONDS

    async def one(n: int) -> None:
        local = (addresses[n % len(addresses)], 0)
        reader, writer = await asyncio.open_connection(*target.address, local_addr=local)
        while time.monotonic() < end:
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {wrong_key()}\r\n"
            writer.write(head.encode() + b"content-length: 2\r\n\r\n{}")
            answer = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.partition(b":")[2]))
            statuses[int(answer.split()[1])] += 1
            assert b" 429 " not in answer or b"\r\nretry-after: " in answer
            await asyncio.sleep(0.05)
        writer.close()

    async def all_at_once() -> None:
        await asyncio.gather(*(one(n) for n in range(connections)))

    asyncio.run(all_at_once())
    return statuses


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/users/ada/signals"])
def test_unknown_keys_from_one_address(target: Attacked, path: str) -> None:
    address = f"127.0.2.{1 + len(path) % 200}"
    with from_address(target, address, headers={"authorization": f"Bearer {target.key}"}) as known:
        assert known.get("/users/u0/summary").status_code == 200
        with others_served(target):
            statuses = flood(target, [address], 300, path)
        assert statuses[401] == 20 and statuses[429] > 300 and set(statuses) == {401, 429}
        assert known.get("/users/u0/summary").status_code == 200


def test_unknown_keys_from_hundreds_of_addresses(target: Attacked) -> None:
    with others_served(target):
        statuses = flood(target, [f"127.0.3.{n}" for n in range(1, 251)], 300, "/v1/chat/completions")
    assert statuses[401] > 300


def test_sign_in_during_wrong_tries(target: Attacked) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    with from_address(target, "127.0.4.1") as wrong, from_address(target, "127.0.4.2") as right:
        statuses = [
            wrong.post("/admin/sign-in", content=f"key={wrong_key()}", headers=form).status_code for _ in range(22)
        ]
        assert statuses == [403] * 20 + [429] * 2
        stored = admin_key(target)
        assert wrong.post("/admin/sign-in", content=f"key={stored}", headers=form).status_code == 429
        assert right.post("/admin/sign-in", content=f"key={stored}", headers=form).status_code == 303
        assert wrong.post("/admin/sign-in", content=f"key={ADMIN}", headers=form).status_code == 303  # never stored


def admin_key(target: Attacked) -> str:
    from popi.serving.keys import create
    from popi.serving.store.database import Database

    database = Database.open(f"sqlite:///{target.folder}/popi.db")
    try:
        return create(database, "admin", "default")[0]
    finally:
        database.close()


def test_cookies_and_links(target: Attacked) -> None:
    with httpx2.Client(base_url=target.gateway.url, headers={"authorization": f"Bearer {target.key}"}) as app:
        links = [app.post("/users/u1/link").json()["url"].partition("/me")[2] for _ in range(2)]
    with from_address(target, "127.0.5.1") as user, from_address(target, "127.0.5.1") as wrong:
        assert user.get("/me" + links[0], follow_redirects=True).status_code == 200
        with others_served(target):
            for n in range(20):
                path, cookie = ("/me", f"popi_me={n}") if n % 2 else ("/me?link=e30.e30", "")
                assert wrong.get(path, headers={"cookie": cookie}).status_code in (401, 403)
        late = wrong.get("/me", headers={"cookie": "popi_me=x"})
        assert late.status_code == 429 and int(late.headers["retry-after"]) > 0
        assert wrong.get("/me" + links[1]).status_code == 429
        assert user.get("/me").status_code == 200
        with from_address(target, "127.0.5.2") as elsewhere:
            assert elsewhere.get("/me" + links[1]).status_code == 303


@contextmanager
def held(file: Path) -> Iterator[None]:
    """Another process that holds a write transaction."""
    code = (
        "import sqlite3, sys\nother = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "other.execute('BEGIN IMMEDIATE')\nprint('held', flush=True)\nsys.stdin.read()"
    )
    with Popen([sys.executable, "-c", code, str(file)], stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        yield
        other.communicate("")


@pytest.mark.slow
def test_writes_while_another_process_holds_the_file(target: Attacked) -> None:
    signals = {"signals": [{"type": "statement", "text": "I like lists."}]}

    async def write(client: httpx2.AsyncClient, n: int) -> tuple[int, str | None, float]:
        began = time.monotonic()
        answer = await client.post(f"/users/u{n % USERS}/signals", json=signals)
        return answer.status_code, answer.headers.get("retry-after"), time.monotonic() - began

    async def all_at_once() -> list[tuple[int, str | None, float]]:
        limits = httpx2.Limits(max_connections=None)
        headers = {"authorization": f"Bearer {target.key}"}
        async with httpx2.AsyncClient(
            base_url=target.gateway.url, headers=headers, timeout=60, limits=limits
        ) as client:
            return await asyncio.gather(*(write(client, n) for n in range(60)))

    with held(target.folder / "popi.db"), others_served(target):
        for status, retry_after, seconds in asyncio.run(all_at_once()):
            assert status == 503 and retry_after is not None and seconds < 12
    with from_address(target, "127.0.0.1", headers={"authorization": f"Bearer {target.key}"}) as client:
        assert client.post("/users/u1/signals", json=signals).status_code == 200
