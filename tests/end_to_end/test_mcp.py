"""`popi mcp` in a separate process, on stdio and over HTTP, with the SDK's own client and a real gateway."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from end_to_end.gateway_process import running

from popi import Client
from popi.client import ClauseEdit
from popi.serving.keys import create
from popi.serving.store.database import Database

mcp: Any = pytest.importorskip("mcp")
stdio: Any = pytest.importorskip("mcp.client.stdio")
streamable_http: Any = pytest.importorskip("mcp.client.streamable_http")

POPI = (sys.executable, "-m", "popi.cli")


class World:
    """A gateway with keys, and summaries of ada and ben."""

    def __init__(self, url: str, keys: dict[str, str]) -> None:
        self.url, self.keys = url, keys
        self.app = Client(url, keys["app"])

    def reset(self) -> int:
        """Give ada two clauses, the first one locked; returns the version."""
        clauses = [ClauseEdit(id="a", text="Likes tea.", locked=True), ClauseEdit(id="b", text="Long answers.")]
        return self.app.put_summary("ada", clauses=clauses).version


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    store = f"sqlite:///{tmp_path_factory.mktemp('store')}/popi.db"
    with running(store) as gateway:
        database = Database.open(store)
        keys = {"app": create(database, "app", "acme")[0], "ada": create(database, "user", "acme", "ada")[0]}
        keys |= {"admin": create(database, "admin")[0], "other": create(database, "app", "other")[0]}
        database.close()
        made = World(gateway.url, keys)
        made.app.put_summary("ben", "Ben is shy.")
        yield made


@asynccontextmanager
async def on_stdio(world: World, key: str, user: str) -> AsyncIterator[Any]:
    command = [*POPI[1:], "mcp", "--url", world.url, "--key-env", "ADAS_KEY", "--user", user]
    env = os.environ | {"ADAS_KEY": world.keys[key]}
    async with mcp.Client(stdio.StdioServerParameters(command=POPI[0], args=command, env=env)) as client:
        yield client


@asynccontextmanager
async def over_http(url: str, key: str, user: str | None, **more: str) -> AsyncIterator[Any]:
    headers = {"authorization": f"Bearer {key}"} | ({} if user is None else {"x-popi-user": user})
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    async with httpx2.AsyncClient(headers=headers, timeout=30) as http:
        async with mcp.Client(streamable_http.streamable_http_client(url, http_client=http)) as client:
            yield client


def words(result: Any) -> str:
    return " ".join(part.text for part in result.content)


async def whole_conversation(world: World, client: Any) -> None:
    """An assistant acting on a user's behalf."""
    version = world.reset()
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"read_summary", "add_signal", "propose_edit"}
    assert tools["read_summary"].annotations.read_only_hint and tools["propose_edit"].annotations.destructive_hint
    assert not any("user" in name for tool in tools.values() for name in tool.input_schema["properties"])

    read = (await client.call_tool("read_summary", {})).structured_content
    assert read["version"] == version and [one["locked"] for one in read["clauses"]] == [True, False]

    before = world.app.export("ada").signals
    sent = {"signal": {"type": "statement", "text": f"i like {time.time_ns()}."}}
    assert words(await client.call_tool("add_signal", sent)) == "added"
    assert "known already" in words(await client.call_tool("add_signal", sent))
    assert len(world.app.export("ada").signals) == len(before) + 1
    wrong = await client.call_tool("add_signal", {"signal": {"type": "statement"}})
    assert wrong.is_error and "text" in words(wrong) and "required" in words(wrong).lower()

    changes = [{"clause_id": "b", "text": "Short answers."}, {"text": "Metric units."}]
    done = await client.call_tool("propose_edit", {"version": version, "changes": changes})
    assert done.structured_content["version"] == version + 1
    stored = world.app.summary("ada")
    assert stored is not None and stored.text == "Likes tea. Short answers. Metric units." and stored.clauses[0].locked

    late = await client.call_tool("propose_edit", {"version": version, "changes": [{"text": "x"}]})
    assert late.is_error and "read it again" in words(late)
    for change in ({"clause_id": "a", "text": "Hates tea."}, {"clause_id": "a"}):
        refused = await client.call_tool("propose_edit", {"version": version + 1, "changes": [change]})
        assert refused.is_error and "locked" in words(refused)
    assert world.app.summary("ada") == stored
    assert world.app.rollback("ada", version).text == "Likes tea. Long answers."  # the user can undo it


def test_on_stdio_with_a_user_key(world: World) -> None:
    async def run() -> None:
        async with on_stdio(world, "ada", "ada") as client:
            await whole_conversation(world, client)
        async with on_stdio(world, "ada", "ben") as client:
            for tool, more in (
                ("read_summary", {}),
                ("add_signal", {"signal": {"type": "post", "text": "hi"}}),
                ("propose_edit", {"version": 1, "changes": [{"text": "x"}]}),
            ):
                refused = await client.call_tool(tool, more)
                assert refused.is_error and "does not allow" in words(refused) and "shy" not in words(refused)

        async with on_stdio(world, "app", "switched") as client:
            assert words(await client.call_tool("add_signal", {"signal": {"type": "post", "text": "hi"}})) == "added"
            world.app.set_controls("switched", use=False, learn=False)
            result = await client.call_tool("add_signal", {"signal": {"type": "post", "text": "more"}})
            assert "does not want to be learned from" in words(result) and world.app.user("switched").signals == 1
            edit = await client.call_tool("propose_edit", {"version": 0, "changes": [{"text": "Likes tea."}]})
            assert edit.is_error and "learned from" in words(edit) and world.app.summary("switched") is None
            read = await client.call_tool("read_summary", {})
            assert read.is_error and "does not want" in words(read)

    asyncio.run(run())
    ben = world.app.summary("ben")
    assert ben is not None and ben.version == 1 and not world.app.export("ben").signals


@pytest.fixture(scope="module")
def http(world: World) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*POPI, "mcp", "--url", world.url, "--http", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"POPI_KEY": world.keys["app"]})
    url = f"http://127.0.0.1:{port}/mcp"
    give_up = time.monotonic() + 60
    while True:
        try:
            httpx2.get(url)
            break
        except httpx2.ConnectError:
            assert process.poll() is None and time.monotonic() < give_up, "popi mcp did not start"
            time.sleep(0.1)
    yield url
    process.terminate()
    process.wait(20)


def test_over_http_each_request_brings_its_own_key(world: World, http: str) -> None:
    async def run() -> None:
        for key in ("ada", "app"):
            async with over_http(http, world.keys[key], "ada") as client:
                await whole_conversation(world, client)
        async with over_http(http, world.keys["ada"], "ben") as client:
            refused = await client.call_tool("read_summary", {})
            assert refused.is_error and "does not allow" in words(refused)
        # An admin names the tenant as for the gateway; an app of another tenant can't.
        for key, more, text in (
            ("admin", {"x_popi_tenant": "acme"}, "Ben is shy."),
            ("admin", {}, ""),
            ("other", {}, ""),
        ):
            async with over_http(http, world.keys[key], "ben", **more) as client:
                assert (await client.call_tool("read_summary", {})).structured_content["text"] == text
        async with over_http(http, world.keys["other"], "ben", x_popi_tenant="acme") as client:
            refused = await client.call_tool("read_summary", {})
            assert refused.is_error and "does not allow" in words(refused)
        async with over_http(http, world.keys["app"], None) as client:
            assert "x-popi-user" in words(await client.call_tool("read_summary", {}))
        async with over_http(http, "popi_0000_nonsense", "ada") as client:
            refused = await client.call_tool("read_summary", {})
            assert refused.is_error and "tea" not in words(refused)

    asyncio.run(run())
    # Behind a reverse proxy the Host differs; a request without a key is refused whatever else it has.
    listed = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    headers = {"host": "mcp.example.com", "accept": "application/json, text/event-stream"}
    bearer = {"authorization": f"Bearer {world.keys['ada']}"}
    assert httpx2.post(http, json=listed, headers=headers | bearer).status_code == 200
    assert httpx2.post(http, json=listed, headers=headers | {"x-popi-user": "ada"}).status_code == 401
    twice = [("x-popi-user", "ben"), ("x-popi-user", "ada"), *headers.items(), *bearer.items()]
    assert httpx2.post(http, json=listed, headers=twice).status_code == 400
    # The server has a valid key in its environment, but never uses it for its clients.
    assert httpx2.post(http, json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).status_code == 401


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--url", "http://127.0.0.1:9"], "--user"),
        (["--url", "http://127.0.0.1:9", "--user", "ada", "--key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["--url", "nonsense", "--user", "ada"], "URL of the gateway"),
        (["--url", "http://127.0.0.1:9", "--http", "--user", "ada"], "each request carries"),
    ],
)
def test_a_wrong_start_is_told_in_words(args: list[str], message: str, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "POPI_KEY"} | {"POPI_KEY": "k"}
    done = subprocess.run([*POPI, "mcp", *args], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
