"""A real LLM server behind the gateway: `transformers serve` with the nano model, and the official `openai` client."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import httpx2
import pytest
from end_to_end.gateway_process import ADMIN, running

from popi.serving.demo import BLOCK
from popi.serving.proxy.block import Blocks
from popi.serving.server import free_port

openai: Any = pytest.importorskip("openai")
pytest.importorskip("fastapi")  # needed by `transformers serve`
pytestmark = pytest.mark.slow

MODEL = str(files("popi.nano").joinpath("base"))
SUMMARY = "wants any tone, expert level, any layout, any length, any mood, figures and cautions."
ASK: list[Any] = [{"role": "user", "content": "tell me about tea."}]
PERSONALISED = [{"role": "system", "content": Blocks(BLOCK).text(SUMMARY)}, *ASK]
SECONDS = 240


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The base URL of a server with the nano model."""
    port = free_port()
    start = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", start, "serve", MODEL, "--device", "cpu", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: list[str] = []
    reading = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reading.start()
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    break
            except httpx2.HTTPError:
                pass
            assert process.poll() is None and time.monotonic() < deadline, "".join(lines)
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def gateway(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("gateway")
    config = folder / "gateway.toml"
    config.write_text(f'[proxy]\nblock = "{BLOCK}"\n')
    with running(f"sqlite:///{folder}/popi.db", "--config", str(config), upstream=server) as process:
        put = httpx2.put(
            f"{process.url}/users/ada/summary", json={"text": SUMMARY}, headers={"authorization": f"Bearer {ADMIN}"}
        )
        assert put.status_code == 200
        yield f"{process.url}/v1"


@pytest.fixture
def through(gateway: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=gateway, api_key=ADMIN, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def direct(server: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=server, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def chat(client: Any, messages: list[Any] = ASK, **more: Any) -> str:
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=60, **more)
    return str(answer.choices[0].message.content)


def streamed(client: Any, messages: list[Any] = ASK, **more: Any) -> list[str]:
    stream = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=60, stream=True, **more)
    return [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]


def test_a_chat_is_personalised(through: Any, direct: Any) -> None:
    plain, mine = chat(direct), chat(direct, PERSONALISED)
    assert plain and plain != mine
    assert chat(through, user="ada") == mine
    assert chat(through) == chat(through, user="stranger") == plain
    assert chat(through, user="ada", extra_headers={"x-popi-personalize": "off"}) == plain


def test_a_stream_is_personalised(through: Any, direct: Any) -> None:
    mine = streamed(through, user="ada")
    assert len(mine) > 5 and mine == streamed(direct, PERSONALISED)
    assert "".join(mine) == chat(direct, PERSONALISED)
    assert streamed(through) == streamed(direct) != mine


def test_responses(through: Any, direct: Any) -> None:
    given = {"model": MODEL, "input": ASK[0]["content"], "max_output_tokens": 60}
    whole = given | {"stream": False}  # this server streams by default
    mine = through.responses.create(**whole, safety_identifier="ada").output_text
    assert mine == direct.responses.create(**whole, instructions=PERSONALISED[0]["content"]).output_text
    assert mine != through.responses.create(**whole).output_text
    with through.responses.stream(**given, user="ada") as stream:
        parts = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(parts) == mine


def test_what_the_server_refuses_reaches_the_client(through: Any, direct: Any) -> None:
    errors = []
    for client in (direct, through):
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(model=MODEL, messages=ASK, extra_body={"no_such_field": 1})
        errors.append((refused.value.status_code, refused.value.body))
    assert errors[0] == errors[1]
