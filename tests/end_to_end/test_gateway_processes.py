"""Several gateways on one store: an edit through one is seen by the others within a second, an erasure at once."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from end_to_end.gateway_process import ADMIN, running
from pgbouncer import Pooler, needs_pooler
from serving_client import empty_store, without_postgres
from typer.testing import CliRunner
from unit.serving.proxy.recording import RecordingUpstream, recording_upstream

from popi.cli import app as popi
from popi.serving.store.changes import LEASE_SECONDS

HEADERS = {"authorization": f"Bearer {ADMIN}"}
PROCESSES = 2
SETTINGS = "[proxy]\nsummary_timeout_ms = 20000\n"
"""A chat waits for its summary, however busy the machine is."""


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=without_postgres),
        pytest.param("pooled", marks=needs_pooler),
    ]
)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param != "pooled":
            yield stack.enter_context(empty_store(request.param, tmp_path))
            return
        pooler = Pooler(tmp_path)
        pooler.start()
        stack.callback(pooler.kill)
        yield pooler.through(stack.enter_context(empty_store("postgresql", tmp_path)))


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    with recording_upstream() as server:
        yield server


@pytest.fixture
def more(tmp_path: Path) -> tuple[str, str]:
    """Options of `popi serve`."""
    (tmp_path / "gateway.toml").write_text(SETTINGS)
    return "--config", str(tmp_path / "gateway.toml")


class Gateway:
    """A client of one process."""

    def __init__(self, url: str, upstream: RecordingUpstream) -> None:
        self.client, self._upstream = httpx2.Client(base_url=url, headers=HEADERS, timeout=60), upstream

    def edit(self, user: str, text: str, version: int) -> None:
        match = {"if-match": str(version)}
        assert self.client.put(f"/users/{user}/summary", json={"text": text}, headers=match).status_code == 200

    def chat(self, user: str, key: str = ADMIN) -> tuple[int, str]:
        """The status, and what the upstream was sent."""
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello"}], "user": user})
        reply = self.client.post("/v1/chat/completions", content=body, headers={"authorization": f"Bearer {key}"})
        return reply.status_code, self._upstream.last.body.decode() if reply.status_code == 200 else ""


def test_an_edit_within_a_second_and_an_erasure_at_once(
    store: str, upstream: RecordingUpstream, more: tuple[str, str]
) -> None:
    with ExitStack() as stack:
        urls = [stack.enter_context(running(store, *more, upstream=upstream.url)).url for _ in range(PROCESSES)]
        gateways = [Gateway(url, upstream) for url in urls]
        for gateway in gateways:
            stack.callback(gateway.client.close)
        slowest = 0.0
        for version in range(6):
            text = f"Version {version} of what ada likes."
            gateways[version % PROCESSES].edit("ada", text, version)
            edited = time.monotonic()
            waiting = list(gateways)
            while waiting:
                waiting = [one for one in waiting if text not in one.chat("ada")[1]]
            slowest = max(slowest, time.monotonic() - edited)
        print(f"all processes used an edit within {slowest * 1000:.0f} ms")
        for number in range(2 * PROCESSES):
            user, by = f"user-{number}", gateways[number % PROCESSES]
            key = by.client.post("/keys", json={"scope": "user", "user_id": user}).json()["key"]
            by.edit(user, f"SECRET of {user}.", 0)
            for one in gateways:  # all have the summary and the key in memory
                assert one.chat(user)[0] == 200 and "SECRET" in one.chat(user, key)[1]
            assert by.client.delete(f"/users/{user}").status_code == 200
            for one in gateways:  # the very next requests
                status, sent = one.chat(user)
                assert status == 200 and "SECRET" not in sent
                assert one.chat(user, key)[0] == 401
        app = gateways[0].client.post("/keys", json={"scope": "app"}).json()
        assert all(one.chat("ada", app["key"])[0] == 200 for one in gateways)
        assert gateways[1].client.delete(f"/keys/{app['key_id']}").status_code == 200
        assert [one.chat("ada", app["key"])[0] for one in gateways] == [401] * PROCESSES
        assert all("what ada likes" in one.chat("ada")[1] for one in gateways)
        assert gateways[1].client.put("/users/ada/controls", json={"use": False}).status_code == 200
        assert not any("what ada likes" in one.chat("ada")[1] for one in gateways)
        app = gateways[0].client.post("/keys", json={"scope": "app"}).json()
        gateways[0].edit("bob", "SECRET of bob.", 0)
        for one in gateways:
            assert "SECRET" in one.chat("bob", app["key"])[1]
        for command in (["users", "erase", "bob"], ["keys", "revoke", app["key_id"]]):
            assert CliRunner().invoke(popi, [*command, "--store", store]).exit_code == 0
        for one in gateways:
            assert "SECRET" not in one.chat("bob")[1] and one.chat("bob", app["key"])[0] == 401
        assert slowest < 1.0


@pytest.mark.slow
def test_a_killed_process_delays_the_next_deletion_alone(
    store: str, upstream: RecordingUpstream, more: tuple[str, str]
) -> None:
    with running(store, *more, upstream=upstream.url) as one, running(store, *more, upstream=upstream.url) as other:
        gateway = Gateway(one.url, upstream)
        gateway.edit("ada", "Likes tea.", 0)
        other.kill()
        took: list[float] = []
        for _ in range(2):
            began = time.monotonic()
            assert gateway.client.delete("/users/ada").status_code == 200
            took.append(time.monotonic() - began)
        print(f"deletions took {took[0]:.1f} s and {took[1]:.1f} s")
        assert took[0] > LEASE_SECONDS / 2 and took[1] < took[0]
        gateway.client.close()
