"""A gateway of an earlier version and today's on one store, which the latter migrates while the former serves.

Needs a checkout of the earlier version: POPI_TEST_EARLIER=/path/to/checkout. Its schema must be one that today's works
with (docs/compatibility.md).
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from end_to_end.gateway_process import running
from end_to_end.test_gateway_processes import HEADERS, SETTINGS, Gateway
from serving_client import empty_store, without_postgres
from unit.serving.proxy.recording import RecordingUpstream, recording_upstream

EARLIER = os.environ.get("POPI_TEST_EARLIER")
pytestmark = [
    pytest.mark.slow,
    without_postgres,
    pytest.mark.skipif(EARLIER is None, reason="POPI_TEST_EARLIER names no checkout of an earlier version"),
]
CACHED_SECONDS = 2.0
"""How long processes from before the table `changes` use a summary."""


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    with recording_upstream() as server:
        yield server


class Writer(threading.Thread):
    """Sends signals, edits and chats until it is stopped; `failed` holds every answer that is not 200."""

    def __init__(self, url: str, user: str) -> None:
        super().__init__()
        self._url, self._user = url, user
        self.stop, self.done = threading.Event(), 0
        self.failed: list[str] = []

    def run(self) -> None:
        with httpx2.Client(base_url=self._url, headers=HEADERS, timeout=60) as client:
            version = 0
            while not self.stop.is_set():
                text = f"{self._user} likes {self.done}."
                body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "user": self._user}
                signal = {"signals": [{"type": "statement", "text": text, "id": f"s{self.done}"}]}
                match = {"if-match": str(version)}
                for reply in (
                    client.post(f"/users/{self._user}/signals", json=signal),
                    client.put(f"/users/{self._user}/summary", json={"text": text}, headers=match),
                    client.post("/v1/chat/completions", json=body),
                ):
                    if reply.status_code != 200:
                        self.failed.append(f"{reply.status_code} {reply.text}")
                version += 1
                self.done += 1


def sees(gateway: Gateway, user: str, text: str) -> float:
    """The seconds until a gateway sends a text upstream."""
    began = time.monotonic()
    while text not in gateway.chat(user)[1]:
        assert time.monotonic() - began < 30
    return time.monotonic() - began


def test_old_and_new_side_by_side(tmp_path: Path, upstream: RecordingUpstream) -> None:
    (tmp_path / "gateway.toml").write_text(SETTINGS)
    more = ("--config", str(tmp_path / "gateway.toml"))
    with empty_store("postgresql", tmp_path, schema=False) as store, ExitStack() as stack:
        earlier = {"PYTHONPATH": f"{EARLIER}/src"}
        old = stack.enter_context(running(store, *more, upstream=upstream.url, env=earlier))
        writer = Writer(old.url, "busy")
        writer.start()
        stack.callback(writer.stop.set)
        new = stack.enter_context(running(store, *more, upstream=upstream.url))  # migrates
        before = writer.done
        while writer.done < before + 5 and not writer.failed:
            time.sleep(0.05)
        one, other = Gateway(old.url, upstream), Gateway(new.url, upstream)
        version, slowest = 0, 0.0
        for n in range(4):
            by, at = ((one, other), (other, one))[n % 2]
            by.edit("ada", f"Version {n} of ada.", version)
            version += 1
            slowest = max(slowest, sees(at, "ada", f"Version {n} of ada."))
        for by, at in ((one, other), (other, one)):
            by.edit("bob", "SECRET", 0)
            sees(at, "bob", "SECRET")
            assert by.client.delete("/users/bob").status_code == 200
            began = time.monotonic()
            while "SECRET" in at.chat("bob")[1]:
                assert time.monotonic() - began < CACHED_SECONDS + 1
        writer.stop.set()
        writer.join()
        stored = other.client.get("/users/busy/export").json()
        for gateway in (one, other):
            gateway.client.close()
    assert writer.failed == []
    assert len(stored["signals"]) == writer.done
    print(f"{writer.done} rounds of the old process, none failed; edits crossed within {slowest:.1f} s")
