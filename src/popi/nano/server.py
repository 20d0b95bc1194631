"""The nano model as a small OpenAI-compatible server, `python -m popi.nano.server`: upstream of `popi serve --demo`.

The nano model knows one form of prompt, that of its own templates, and no others. So a summary that the gateway put in
is taken out of its block again, and goes where the nano templates have it. A real model reads the block itself.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from popi.generator import Generator
from popi.serving.proxy.block import DEFAULT_BLOCK

NAME = "nano"
LONGEST = 96
"""Most tokens of an answer."""


class NanoServer:
    """The routes, around one generator."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._turn = asyncio.Lock()  # one model, two cores

    @property
    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [Route("/v1/chat/completions", self._chat, methods=["POST"]), Route("/v1/models", self._models)]
        return Starlette(routes=routes)

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": NAME, "object": "model", "owned_by": "popi"}]})

    async def _chat(self, request: Request) -> Response:
        try:
            body = json.loads(await request.body())
            prompt, summary = _read(body["messages"])
            most = min(int(body.get("max_tokens") or LONGEST), LONGEST)
            temperature = float(body.get("temperature") or 0.0)
        except (ValueError, TypeError, KeyError, AttributeError):
            words = "the body must be JSON with messages, the last of them by the user, in text"
            return JSONResponse({"error": {"message": words, "type": "invalid_request_error"}}, 400)
        async with self._turn:
            text = await asyncio.to_thread(self._generator.generate, prompt, summary, most, temperature)
        head = {"id": f"chatcmpl-{time.time_ns():x}", "created": int(time.time()), "model": NAME}
        if body.get("stream"):
            return StreamingResponse(_chunks(text, head), media_type="text/event-stream")
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        count = self._generator.count_tokens
        spent = {"prompt_tokens": count(prompt), "completion_tokens": count(text)}
        usage = spent | {"total_tokens": sum(spent.values())}
        return JSONResponse(head | {"object": "chat.completion", "choices": choices, "usage": usage})


async def _chunks(text: str, head: dict[str, Any]) -> AsyncIterator[str]:
    """The answer word by word, as server-sent events."""
    words = text.split(" ")
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word if number == 0 else f" {word}"} for number, word in enumerate(words)]
    for number, delta in enumerate([*deltas, {}]):
        finish = "stop" if number == len(deltas) else None
        chunk = head | {
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"


def _read(messages: list[dict[str, Any]]) -> tuple[str, str | None]:
    """The last message as the task prompt, and the summary in the gateway's block, if there is one."""
    before, behind = DEFAULT_BLOCK.split("{summary}")
    summary = None
    for message in messages[:-1]:
        text = _text(message["content"])
        if before in text and behind in text:
            summary = text.split(before, 1)[1].rsplit(behind, 1)[0].strip()
    last = messages[-1]
    prompt = _text(last["content"]).strip()
    if last["role"] != "user" or not prompt:
        raise ValueError
    return prompt, summary


def _text(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def main() -> None:
    """Load the nano model and serve it."""
    parser = argparse.ArgumentParser(prog="python -m popi.nano.server", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port of 127.0.0.1 to listen at")
    port: int = parser.parse_args().port
    server = NanoServer(Generator.from_pretrained(NAME))
    config = uvicorn.Config(server.app, host="127.0.0.1", port=port, log_level="warning", access_log=False, ws="none")
    try:
        uvicorn.Server(config).run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
