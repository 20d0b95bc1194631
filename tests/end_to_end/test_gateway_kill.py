"""`kill -9` under load: every write acknowledged over HTTP survives the restart."""

import random
import sqlite3
import threading
import time
from pathlib import Path

import httpx2
import pytest
from end_to_end.gateway_process import ADMIN, GatewayProcess, start

HEADERS = {"authorization": f"Bearer {ADMIN}"}
CLIENTS = 4


class Load:
    """Clients that write as fast as they get responses, and remember what was acknowledged."""

    def __init__(self) -> None:
        self.signals: dict[str, set[str]] = {}
        self.versions: dict[str, dict[int, str]] = {}
        self.stop = threading.Event()
        self.answered = 0

    def run(self, url: str, user: str, salt: str) -> None:
        signals, versions = self.signals.setdefault(user, set()), self.versions.setdefault(user, {})
        version = max(versions, default=0)
        try:
            with httpx2.Client(base_url=url, headers=HEADERS, timeout=20) as client:
                reply = client.get(f"/users/{user}/summary")
                version = reply.json()["version"] if reply.status_code == 200 else 0
                for n in range(10**6):
                    if self.stop.is_set():
                        return
                    name = f"{salt}-{n}"
                    sent = {"signals": [{"type": "statement", "text": name, "id": name}]}
                    if client.post(f"/users/{user}/signals", json=sent).status_code == 200:
                        signals.add(name)
                        self.answered += 1
                    if n % 3 == 0:
                        match = {"if-match": str(version)}
                        done = client.put(f"/users/{user}/summary", json={"text": name}, headers=match)
                        if done.status_code == 200:
                            version = done.json()["version"]
                            versions[version] = name
        except httpx2.HTTPError:
            return  # it was killed

    def check(self, url: str) -> None:
        with httpx2.Client(base_url=url, headers=HEADERS, timeout=60) as client:
            for user, names in self.signals.items():
                if not names:
                    continue
                whole = client.get(f"/users/{user}/export").json()
                assert names <= {one["id"] for one in whole["signals"]}
                stored = {one["version"]: one["text"] for one in whole["versions"]}
                expected = {n: text for n, text in self.versions[user].items() if n > max(stored, default=0) - 100}
                assert expected.items() <= stored.items()


def killed(folder: Path, times: int, seconds: float) -> None:
    store, load, chance = f"sqlite:///{folder}/popi.db", Load(), random.Random(0)
    gateway: GatewayProcess = start(store)
    try:
        for n in range(times):
            load.stop.clear()
            before = load.answered
            clients = [
                threading.Thread(target=load.run, args=(gateway.url, f"u{c}", f"{n}-{c}")) for c in range(CLIENTS)
            ]
            for client in clients:
                client.start()
            give_up = time.monotonic() + 60
            while load.answered == before and time.monotonic() < give_up:
                time.sleep(0.01)
            time.sleep(chance.random() * seconds)
            gateway.kill()
            for client in clients:
                client.join()
            gateway = start(store)
            load.check(gateway.url)
    finally:
        gateway.kill()
    assert load.answered > times
    assert sqlite3.connect(folder / "popi.db").execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_acknowledged_writes_survive_a_few_kills(tmp_path: Path) -> None:
    killed(tmp_path, 3, 0.3)


@pytest.mark.slow
def test_acknowledged_writes_survive_many_kills(tmp_path: Path) -> None:
    killed(tmp_path, 50, 1.0)
