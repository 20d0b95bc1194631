"""Model APIs of several makes on this machine: each at the paths, with the keys, fields and errors of its own.

One server for all of them; docs/api_models.md names the sources. What arrives is kept.
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = "sk-provider-0123456789"


@dataclass
class Arrived:
    """One request: its target with the query, its headers in lower case, its JSON."""

    method: str
    target: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Providers:
    """The server.

    Attributes:
        url: of Ollama, vLLM, OpenAI and Anthropic; the others have a path of their own.
        arrived: what it was asked.
        down: paths that answer 500.
    """

    url: str = ""
    arrived: list[Arrived] = field(default_factory=list)
    down: set[str] = field(default_factory=set)

    @property
    def last(self) -> Arrived:
        return self.arrived[-1]


def _error(status: int, message: str, **more: Any) -> web.Response:
    return web.json_response({"error": {"message": message} | more}, status=status)


def _completion(body: dict[str, Any]) -> web.Response:
    message = {"role": "assistant", "content": "Likes short answers."}
    return web.json_response(
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": body.get("model", "m"),
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25},
        }
    )


def _models(*names: str, **more: Any) -> web.Response:
    data = [{"id": name, "object": "model", "created": 7, "owned_by": "them"} | more for name in names]
    return web.json_response({"object": "list", "data": data})


def _bearer(request: web.Request) -> bool:
    return request.headers.get("authorization") == f"Bearer {KEY}"


async def azure(request: web.Request) -> web.Response:
    """Deployments need `api-version` and `api-key`; there is no list of them. `/openai/v1` needs no version."""
    if request.headers.get("api-key") != KEY:
        return _error(401, "Access denied due to invalid subscription key or wrong API endpoint.", code="401")
    if "deployments" in request.path:
        if request.query.getall("api-version", []) != ["2024-10-21"]:
            return _error(404, "Resource not found", code="404")
        if request.match_info["rest"] != "gpt-4o/chat/completions":
            return _error(404, "The API deployment for this resource does not exist.", code="DeploymentNotFound")
    return _completion(await request.json())


async def gemini(request: web.Request) -> web.Response:
    """Errors come in a list; models are listed with `models/` before their names."""
    if not _bearer(request):
        error = {"code": 400, "message": "Missing or invalid Authorization header.", "status": "INVALID_ARGUMENT"}
        return web.json_response([{"error": error}], status=400)
    if request.match_info["rest"] == "models":
        return _models("models/gemini-2.5-flash", "models/gemini-2.5-pro")
    return _completion(await request.json())


async def zai(request: web.Request) -> web.Response:
    return _completion(await request.json()) if _bearer(request) else _error(401, "token expired or incorrect")


async def at_v1(request: web.Request) -> web.Response:
    """Ollama, vLLM and OpenAI, told apart by the model; Ollama looks at no key."""
    if request.path == "/v1/models":
        if "anthropic-version" in request.headers:
            return await anthropic(request)
        return (
            _models("llama3.2:latest", "smol", max_model_len=2048) if _bearer(request) else _models("llama3.2:latest")
        )
    body = await request.json()
    model = body.get("model", "")
    if model.startswith("llama"):
        return _completion(body)
    if not _bearer(request):
        return web.json_response({"error": "Unauthorized"}, status=401)  # vLLM's
    if model.startswith("gpt-5"):
        if "max_tokens" in body:
            words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'"
            return _error(400, words, type="invalid_request_error", param="max_tokens", code="unsupported_parameter")
        if body.get("temperature", 1) != 1:
            words = "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value"
            return _error(400, words, type="invalid_request_error", param="temperature", code="unsupported_value")
    elif model != "smol":
        return _error(404, f"The model `{model}` does not exist.", type="NotFoundError", code=404)
    return _completion(body)


async def anthropic(request: web.Request) -> web.Response:
    if request.headers.get("x-api-key") != KEY or "anthropic-version" not in request.headers:
        error = {"type": "authentication_error", "message": "invalid x-api-key"}
        return web.json_response({"type": "error", "error": error}, status=401)
    if request.path.endswith("/models"):
        model = {"type": "model", "id": "claude-x", "display_name": "Claude X", "created_at": "2025-02-19T00:00:00Z"}
        return web.json_response({"data": [model], "has_more": False, "first_id": "claude-x", "last_id": "claude-x"})
    content = [{"type": "text", "text": "Likes short answers."}]
    answer = {"id": "m1", "type": "message", "role": "assistant", "content": content, "stop_reason": "end_turn"}
    return web.json_response(answer | {"model": "claude-x", "usage": {"input_tokens": 3, "output_tokens": 4}})


@contextmanager
def serving() -> Iterator[Providers]:
    """The server for as long as the block lasts."""
    providers = Providers()

    @web.middleware
    async def keep(request: web.Request, handler: Any) -> web.StreamResponse:
        text = await request.text()
        headers = {name.lower(): value for name, value in request.headers.items()}
        providers.arrived.append(
            Arrived(request.method, request.raw_path, headers, json.loads(text) if text[:1] == "{" else {})
        )
        if request.path in providers.down:
            return web.Response(status=500, text="down")
        answer: web.StreamResponse = await handler(request)
        return answer

    app = web.Application(middlewares=[keep])
    for path, handler in {
        "/openai/deployments/{rest:.+}": azure,
        "/openai/v1/{rest:.+}": azure,
        "/v1beta/openai/{rest:.+}": gemini,
        "/api/paas/v4/chat/completions": zai,
        "/api/anthropic/v1/{rest:.+}": anthropic,
        "/v1/messages": anthropic,
        "/v1/{rest:.+}": at_v1,
    }.items():
        app.router.add_route("*", path, handler)
    loop, runner = asyncio.new_event_loop(), web.AppRunner(app)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    providers.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield providers
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(runner.cleanup())
        loop.close()
