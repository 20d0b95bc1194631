"""`popi serve --demo`: a chat, a summary, a new signal, another summary; offline, and no files or processes remain."""

import os
import signal
import time
from pathlib import Path

import httpx2
import pytest
from demo_process import demo

from popi.generator import Generator
from popi.serving.demo import PROMPT

pytestmark = pytest.mark.slow


def answer(client: httpx2.Client, **headers: str) -> tuple[str, str]:
    """The demo's answer, and whether it was personalised."""
    chat = {"model": "nano", "messages": [{"role": "user", "content": PROMPT}]}
    reply = client.post("/v1/chat/completions", json=chat, headers=headers)
    return reply.json()["choices"][0]["message"]["content"], reply.headers["x-popi-personalized"]


def test_the_demo_answers_and_learns() -> None:
    with demo() as (process, client):
        plain, mine = answer(client), answer(client, **{"x-popi-user": "ada"})
        off = answer(client, **{"x-popi-user": "ada", "x-popi-personalize": "off"})
        assert (plain[1], mine[1], off[1]) == ("none", "applied", "off")
        assert mine[0] != off[0] == plain[0]  # greedy decoding: only the summary makes the difference
        model = Generator.from_pretrained("nano")
        ada = client.get("/users/ada/summary").json()["text"]
        assert mine[0] == model.generate(PROMPT, ada, 96)  # the block is the one that the nano model was trained on
        assert off[0] == model.generate(PROMPT, None, 96)
        before = client.get("/users/ben/summary").json()
        pairs = [
            {"type": "pair", "prompt": f"what about {word}?", "chosen": "so done.", "rejected": "well " * 20}
            for word in ("tea", "soup", "bees", "rockets", "ferns", "lemons", "puzzles")
        ]
        client.delete("/users/ben")
        client.post("/users/ben/signals", json={"signals": pairs})
        give_up = time.monotonic() + 60
        while (after := client.get("/users/ben/summary")).status_code != 200:
            assert time.monotonic() < give_up
            time.sleep(0.2)
        assert after.json()["version"] == 1 and after.json()["text"] != before["text"]
    assert process.returncode in (143, -signal.SIGTERM)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's /proc to see the processes")
def test_killed_it_leaves_no_process_behind() -> None:
    with demo() as (process, _):
        started = children(process.pid)
        assert len(started) == 2 and all(map(runs, started))
        process.kill()
        give_up = time.monotonic() + 60
        while any(map(runs, started)):
            assert time.monotonic() < give_up
            time.sleep(0.05)
