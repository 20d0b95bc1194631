"""The cost of the underlying libraries: a relay made of uvicorn and aiohttp, without popi's code."""

from typing import Any

import aiohttp
import uvicorn

from popi.serving.connections import uvicorn_settings
from popi.serving.settings import ServerSettings

_OF_THE_CONNECTION = (b"host", b"content-length", b"transfer-encoding", b"connection")


class Bare:
    """Forwards whole requests and streams answers, with unchanged headers."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream = f"http://127.0.0.1:{upstream_port}"
        self.session: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.session is None:
            self.session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                auto_decompress=False,
            )
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = [(k.decode(), v.decode()) for k, v in scope["headers"] if k not in _OF_THE_CONNECTION]
        url = self.upstream + scope["path"]
        async with self.session.request(scope["method"], url, data=body, headers=headers) as reply:
            passed = [(k.lower(), v) for k, v in reply.raw_headers if k.lower() not in _OF_THE_CONNECTION[2:]]
            await send({"type": "http.response.start", "status": reply.status, "headers": passed})
            async for piece in reply.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def bare(port: int, upstream_port: int) -> None:
    """Serve until the process is terminated."""
    settings = uvicorn_settings(ServerSettings()) | {"http": "httptools"}
    uvicorn.run(Bare(upstream_port), port=port, lifespan="off", log_level="warning", **settings)
