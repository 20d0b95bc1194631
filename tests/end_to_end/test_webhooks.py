"""Webhooks of gateways and workers in separate processes: recorded events are delivered, whichever process dies."""

import os
import subprocess
import sys
from pathlib import Path

import httpx2
from end_to_end.gateway_process import ADMIN, running, start
from webhook_receiver import SECRET, receiving

from popi.serving.server import free_port

HEADERS = {"authorization": f"Bearer {ADMIN}"}
ENV = {"HOOK": SECRET}


def put(url: str, user: str) -> None:
    reply = httpx2.put(f"{url}/users/{user}/summary", json={"text": "Likes tea."}, headers=HEADERS, timeout=60)
    assert reply.status_code == 200, reply.text


def test_what_was_noted_before_a_kill_is_told_after_the_restart(tmp_path: Path) -> None:
    store, settings, port = f"sqlite:///{tmp_path}/popi.db", tmp_path / "popi.toml", free_port()
    settings.write_text(
        f"[[webhooks]]\nname = 'crm'\nurl = 'http://127.0.0.1:{port}/hook'\nsecret_env = 'HOOK'\n"
        "[inference]\nurl = 'http://127.0.0.1:9'\nmodel = 'm'\ncheck = false\n"
    )
    gateway = start(store, "--config", str(settings), "--no-worker", env=ENV)
    try:
        put(gateway.url, "ann")
    finally:
        gateway.kill()
    with receiving(port) as receiver, running(store, "--config", str(settings), "--no-worker", env=ENV) as gateway:
        receiver.wait(1)
        put(gateway.url, "ben")
        receiver.wait(2)
        assert receiver.told() == [("summary.changed", "ann", 1), ("summary.changed", "ben", 1)]
        # A process without these settings erases, as popi's own command does: the store knows the endpoints.
        popi = [sys.executable, "-m", "popi.cli"]
        subprocess.run([*popi, "users", "erase", "ann", "--store", store], check=True, capture_output=True, timeout=60)
        receiver.wait(3)
        assert receiver.told()[2] == ("user.erased", "ann", None)
        receiver.answer = lambda got: 503
        put(gateway.url, "cid")
        receiver.wait(4)
        gateway.kill()
        receiver.answer = lambda got: 204
        command = [*popi, "worker", "--store", store, "--config", str(settings)]
        worker = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | ENV | {"NO_PROXY": "*"})
        try:
            got = receiver.wait(5)
        finally:
            worker.terminate()
            worker.wait(30)
        assert got[4].told == ("summary.changed", "cid", 1) and got[4].id == got[3].id
