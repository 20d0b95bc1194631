"""The gateway's store from outside: two gateways share a store, and erasure leaves nothing in the data folder."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from end_to_end.gateway_process import ADMIN, running
from serving_client import STORES, empty_store

HEADERS = {"authorization": f"Bearer {ADMIN}"}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_store(request.param, tmp_path) as url:
        yield url


def statement(name: str) -> dict[str, Any]:
    return {"signals": [{"type": "statement", "text": name, "id": name[-200:]}]}


def test_two_gateways_with_two_workers_on_one_store(store: str, tmp_path: Path, upstream: Any) -> None:
    """Both receive signals and edits of the same users; none is lost or duplicated, and both return the same."""
    settings = tmp_path / "gateway.toml"
    settings.write_text(
        "[renewal]\nquiet_s = 0.3\nmax_wait_s = 1.0\npoll_interval_s = 0.05\n[inference]\ncheck = false\n"
    )
    asked: list[str] = []

    def answer(messages: list[dict[str, str]]) -> str:
        if "<statements>" in messages[-1]["content"]:  # the second call, which asks for the reasons
            return "1: 1"
        asked.append("x")
        return f"Summary number {len(asked)}."

    upstream.answer = answer
    more = ("--config", str(settings), "--inference-url", f"{upstream.url}/v1", "--inference-model", "m")
    users = [f"u{n}" for n in range(4)]
    with running(store, *more) as one, running(store, *more) as other:
        errors: list[str] = []

        def send(url: str, salt: str) -> None:
            with httpx2.Client(base_url=url, headers=HEADERS, timeout=30) as client:
                for n in range(15):
                    for user in users:
                        # Both gateways receive the first one, with the same id.
                        name = f"{user}-both-{n}" if n < 5 else f"{user}-{salt}-{n}"
                        reply = client.post(f"/users/{user}/signals", json=statement(name))
                        if reply.status_code != 200:
                            errors.append(reply.text)

        threads = [threading.Thread(target=send, args=(g.url, s)) for g, s in ((one, "a"), (other, "b"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        clients = [httpx2.Client(base_url=gateway.url, headers=HEADERS, timeout=30) for gateway in (one, other)]
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            if all(clients[0].get(f"/users/{user}").json()["renewal"] is None for user in users):
                break
            time.sleep(0.1)
        texts: list[str] = []
        for user in users:
            whole, same = (client.get(f"/users/{user}/export").json() for client in clients)
            assert whole == same
            names = [one["id"] for one in whole["signals"]]
            expected = {f"{user}-both-{n}" for n in range(5)} | {f"{user}-{s}-{n}" for s in "ab" for n in range(5, 15)}
            assert set(names) == expected and len(names) == len(expected)
            versions = [one["version"] for one in whole["versions"]]
            assert versions == list(range(len(versions), 0, -1)) and versions
            texts += [one["text"] for one in whole["versions"]]
        assert len(texts) == len(set(texts)) == len(asked)  # every result of the model was stored once
        wins = []
        for n, client in enumerate(clients):
            match = {"if-match": str(clients[0].get("/users/u0/summary").json()["version"] if n == 0 else wins[0])}
            wins.append(int(match["if-match"]))
            wins.append(client.put("/users/u0/summary", json={"text": f"edit {n}"}, headers=match).status_code)
        assert wins[1::2] == [200, 412]  # the second one expected the version that the first one replaced
        for client in clients:
            client.close()


def test_an_erased_user_is_in_no_file(tmp_path: Path) -> None:
    secret = "SECRET-WORDS"
    with running(f"sqlite:///{tmp_path}/popi.db") as gateway:
        with httpx2.Client(base_url=gateway.url, headers=HEADERS, timeout=30) as client:
            for n in range(30):
                for user in ("someone@example.org", "other"):
                    words = f"{secret} {n} " * 20 if user != "other" else "fine"
                    client.post(f"/users/{user}/signals", json=statement(f"{words}{n}"))
                    match = {"if-match": str(n)}
                    assert client.put(f"/users/{user}/summary", json={"text": words}, headers=match).status_code == 200
            files = [file for file in tmp_path.iterdir() if secret.encode() in file.read_bytes()]
            assert files
            receipt = client.delete("/users/someone@example.org").json()
            assert receipt["removed"]["signals"] == 30 and receipt["data_on_disk"] == "overwritten"
            for words in (secret, "someone@example.org"):
                assert [file.name for file in tmp_path.iterdir() if words.encode() in file.read_bytes()] == []
            assert client.get("/users/other/export").json()["signals"]
    for words in (secret, "someone@example.org"):
        assert [file.name for file in tmp_path.iterdir() if words.encode() in file.read_bytes()] == []
    assert not any(secret in line or "someone" in line for line in gateway.lines)
