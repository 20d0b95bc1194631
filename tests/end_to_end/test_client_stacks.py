"""Third-party clients in front of the gateway, each as its users run it; `.ci/client-stacks` installs them."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from end_to_end.gateway_process import ADMIN, GatewayProcess, running
from end_to_end.model_api import answer
from unit.serving.proxy.recording import SUMMARY, RecordingUpstream, recording_upstream

CLIENTS = os.environ.get("POPI_TEST_CLIENTS")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CLIENTS is None, reason="POPI_TEST_CLIENTS names no clients (.ci/client-stacks)"),
]
FOLDER = Path(CLIENTS or ".")
ENV, LITELLM = FOLDER / "env/bin", FOLDER / "litellm/bin"
SCRIPTS = Path(__file__).parent / "client_stacks"
PLACE = {"place": "Bonn"}


@pytest.fixture(scope="module")
def upstream() -> Iterator[RecordingUpstream]:
    with recording_upstream() as server:
        server.reply = answer
        yield server


@contextlib.contextmanager
def gateway_before(url: str, folder: Path, *more: str) -> Iterator[GatewayProcess]:
    """A gateway that knows Ann, in front of a model API."""
    settings = folder / "popi.toml"
    settings.write_text("[proxy]\nsummary_timeout_ms = 10000\n")  # even on a busy machine
    with running(f"sqlite:///{folder}/popi.db", "--config", str(settings), *more, upstream=url) as gateway:
        headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
        body = json.dumps({"text": SUMMARY}).encode()
        put = urllib.request.Request(f"{gateway.url}/users/ann/summary", body, headers, method="PUT")
        urllib.request.urlopen(put, timeout=20).close()
        yield gateway


@pytest.fixture(scope="module")
def gateway(upstream: RecordingUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway_before(upstream.url, tmp_path_factory.mktemp("store")) as started:
        yield started


@pytest.fixture(autouse=True)
def no_plain_id(upstream: RecordingUpstream) -> Iterator[None]:
    upstream.received.clear()
    yield
    for got in upstream.received:
        assert '"ann"' not in got.body.decode() and "ann" not in [value for _, value in got.headers]


def last_line(command: list[str], url: str, **more: Any) -> str:
    """Run a program and return its last line of output."""
    env = os.environ | {"GATEWAY": url, "KEY": ADMIN, "NO_PROXY": "*", "NODE_PATH": str(FOLDER / "node_modules")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("python", "script", "ways"),
    [
        (ENV, "langchain_chat.py", ["chat", "stream", "user field", "responses", "messages", "messages stream"]),
        (ENV, "pydantic_agent.py", ["chat", "stream", "messages"]),
        (LITELLM, "litellm_sdk.py", ["chat", "stream", "messages"]),
    ],
)
def test_python(gateway: GatewayProcess, python: Path, script: str, ways: list[str]) -> None:
    answers = json.loads(last_line([str(python / "python"), str(SCRIPTS / script)], gateway.url).splitlines()[-1])
    assert answers.pop("tool", PLACE) == PLACE
    assert answers == dict.fromkeys(ways, "personal")


def test_vercels_ai_sdk(gateway: GatewayProcess, tmp_path: Path) -> None:
    if not (FOLDER / "node_modules/ai").exists():
        pytest.skip("no npm here")
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
    script = tmp_path / "vercel_ai.mjs"  # node looks for modules next to the file
    script.write_text((SCRIPTS / "vercel_ai.mjs").read_text())
    answers = json.loads(last_line(["node", str(script)], gateway.url).splitlines()[-1])
    assert answers.pop("tool") == PLACE
    ways = ["chat", "stream", "compatible", "responses", "messages", "messages stream"]
    assert answers == dict.fromkeys(ways, "personal")


def test_javas_http_client(gateway: GatewayProcess) -> None:
    whole, chunked, streamed, fresh = last_line(["java", str(SCRIPTS / "StockClient.java")], gateway.url).splitlines()
    for line in (whole, chunked):
        status, _, body = line.partition(" ")
        assert status == "200" and json.loads(body)["choices"][0]["message"]["content"] == "personal"
    for line in (streamed, fresh):
        assert line.startswith("200 data: ") and line.endswith("data: [DONE]") and '"rsonal"' in line


@pytest.mark.parametrize("version", ["--http0.9", "--http1.0", "--http1.1", "--http2", "--http2-prior-knowledge"])
def test_curl(gateway: GatewayProcess, version: str) -> None:
    body = {"model": "m", "user": "ann", "messages": [{"role": "user", "content": "hello"}]}
    command = ["curl", "-sS", version, "-w", "\n%{http_code}", "-d", json.dumps(body), "-H"]
    command += [f"Authorization: Bearer {ADMIN}", f"{gateway.url}/v1/chat/completions"]
    if version == "--http2-prior-knowledge":  # HTTP/2 by prior knowledge needs TLS, which the reverse proxy terminates
        assert subprocess.run(command, capture_output=True, timeout=60).returncode != 0
        return
    text, _, status = last_line(command, gateway.url).rpartition("\n")
    assert status == "200" and json.loads(text)["choices"][0]["message"]["content"] == "personal"


@contextlib.contextmanager
def litellm_proxy(url: str, key: str, folder: Path) -> Iterator[str]:
    """LiteLLM's proxy in front of a server; where it listens.

    It drops `user` of models that it does not know, and clients' headers, unless told not to.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "litellm.yaml").write_text(
        "model_list:\n"
        "  - model_name: m\n"
        f"    litellm_params: {{model: openai/m, api_base: '{url}/v1', api_key: {key},\n"
        "                     allowed_openai_params: [user]}\n"
        f"general_settings: {{master_key: {ADMIN}, forward_client_headers_to_llm_api: true}}\n"
        "litellm_settings: {telemetry: false}\n"
    )
    command = [
        str(LITELLM / "litellm"),
        "--config",
        str(folder / "litellm.yaml"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with (folder / "litellm.log").open("wb") as out:
        server = subprocess.Popen(command, env=os.environ | {"NO_PROXY": "*"}, stdout=out, stderr=out, cwd=folder)
    try:
        end = time.monotonic() + 180
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5).close()
                break
            assert server.poll() is None and time.monotonic() < end, (folder / "litellm.log").read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def chat(url: str, stream: bool = False, by: str = "field") -> str:
    body: dict[str, Any] = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
    named = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
    if by == "field":
        body["user"] = "ann"
    else:
        named["x-popi-user"] = "ann"
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), named)
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert isinstance(reply, http.client.HTTPResponse)
        return reply.read().decode()


def test_litellms_proxy_in_front(gateway: GatewayProcess, tmp_path: Path) -> None:
    with litellm_proxy(gateway.url, ADMIN, tmp_path) as proxy:
        assert '"personal"' in chat(proxy) and '"personal"' in chat(proxy, by="header")
        assert "rsonal" in chat(proxy, stream=True)


def test_litellms_proxy_behind(upstream: RecordingUpstream, tmp_path: Path) -> None:
    with litellm_proxy(upstream.url, "none", tmp_path) as proxy:
        with gateway_before(proxy, tmp_path, "--upstream-key-env", "POPI_ADMIN_KEY") as gateway:
            assert '"personal"' in chat(gateway.url)
            assert "rsonal" in chat(gateway.url, stream=True)
            models = urllib.request.Request(f"{gateway.url}/v1/models", headers={"Authorization": f"Bearer {ADMIN}"})
            assert [one["id"] for one in json.load(urllib.request.urlopen(models, timeout=60))["data"]] == ["m"]
