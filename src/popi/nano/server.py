"""The nano model as a small OpenAI-compatible server, `python -m popi.nano.server`: upstream of `popi serve --demo`.

The nano model knows only the prompt format of its own templates: a system message with the summary (or none), and a
user message. So the gateway must insert summaries as those templates do (`[proxy] block`, see `popi.serving.demo`),
and from a longer conversation the model reads only the system message and the last turn.
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
from popi.signals.neutralise import neutralise

NAME = "nano"
LONGEST = 96
"""Maximum tokens of an answer."""


class NanoServer:
    """The server's routes, for one generator."""

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
            conversation = _read(body["messages"])
            max_tokens = min(int(body.get("max_tokens") or LONGEST), LONGEST)
            temperature = float(body.get("temperature") or 0.0)
        except (ValueError, TypeError, KeyError, AttributeError):
            problem = "the body must be JSON with messages, the last of which must be a text message by the user"
            return JSONResponse({"error": {"message": problem, "type": "invalid_request_error"}}, 400)
        async with self._turn:
            texts = await asyncio.to_thread(self._generator.reply_many, [conversation], max_tokens, temperature)
        text = texts[0]
        head = {"id": f"chatcmpl-{time.time_ns():x}", "created": int(time.time()), "model": NAME}
        if body.get("stream"):
            return StreamingResponse(_chunks(text, head), media_type="text/event-stream")
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        prompt_tokens = self._generator.prompt_tokens([conversation])[0]
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": self._generator.count_tokens(text)}
        usage = counts | {"total_tokens": sum(counts.values())}
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


def _read(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The part of a conversation that the model reads."""
    system = [_text(message["content"]) for message in messages[:-1] if message["role"] in ("system", "developer")]
    last = messages[-1]
    prompt = _text(last["content"])
    if last["role"] != "user" or not prompt:
        raise ValueError
    turns = [{"role": "user", "content": prompt}]
    return [{"role": "system", "content": "\n\n".join(system)}, *turns] if system else turns


def _text(content: str | list[dict[str, Any]]) -> str:
    text = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
    return neutralise(text, single_line=True).strip()


def main() -> None:
    """Load the nano model and serve it."""
    parser = argparse.ArgumentParser(prog="python -m popi.nano.server", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1 to listen on")
    port: int = parser.parse_args().port
    server = NanoServer(Generator.from_pretrained(NAME))
    config = uvicorn.Config(server.app, host="127.0.0.1", port=port, log_level="warning", access_log=False, ws="none")
    try:
        uvicorn.Server(config).run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
