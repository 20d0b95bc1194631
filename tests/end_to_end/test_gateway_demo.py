"""`popi serve --demo`: a chat, a summary, a new signal, another summary; without a network."""

import re
import signal
import subprocess
import sys
import threading
import time

import httpx2
import pytest


@pytest.mark.slow
def test_the_demo_answers_and_learns() -> None:
    command = [sys.executable, "-m", "popi.cli", "serve", "--demo", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    assert process.stderr is not None
    threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True).start()
    try:
        give_up = time.monotonic() + 180
        while not (found := re.search(r"POPI_URL=(\S+) POPI_KEY=(\S+)", "".join(lines))):
            assert process.poll() is None and time.monotonic() < give_up, "".join(lines)
            time.sleep(0.1)
        headers = {"authorization": f"Bearer {found[2]}"}
        with httpx2.Client(base_url=found[1], headers=headers, timeout=60) as client:
            chat = {"model": "nano", "messages": [{"role": "user", "content": "tell me about tea."}]}
            plain = client.post("/v1/chat/completions", json=chat)
            mine = client.post("/v1/chat/completions", json=chat, headers={"x-popi-user": "ada"})
            assert mine.headers["x-popi-personalized"] == "applied"
            answers = [reply.json()["choices"][0]["message"]["content"] for reply in (plain, mine)]
            assert answers[0] != answers[1]
            before = client.get("/users/ben/summary").json()
            pairs = [
                {"type": "pair", "prompt": f"what about {word}?", "chosen": "so done.", "rejected": "well " * 20}
                for word in ("tea", "soup", "bees", "rockets", "ferns", "lemons", "puzzles")
            ]
            client.delete("/users/ben")
            client.post("/users/ben/signals", json={"signals": pairs})
            while (after := client.get("/users/ben/summary")).status_code != 200:
                assert time.monotonic() < give_up
                time.sleep(0.2)
            assert after.json()["version"] == 1 and after.json()["text"] != before["text"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert process.returncode in (143, -signal.SIGTERM)
