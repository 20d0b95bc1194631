"""Calls to the model API behind the gateway: nothing added, nothing decoded; its faults as refusals."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx2

from popi.serving.proxy.connection import Answer, Silent, Unreachable, UpstreamFault
from popi.serving.proxy.headers import Raw
from popi.serving.proxy.refusals import Refusal
from popi.serving.proxy.settings import ProxySettings
from popi.serving.proxy.wire import Body, Wire

MOST_FETCHED = 2**20
"""Most bytes of what `fetch` gets."""
FETCH_S = 10.0
"""Seconds that it may take."""


class Upstream:
    """The server behind the gateway. Requests are sent within `open`.

    Args:
        settings: where it is, and how long to wait.
    """

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self._below = urlsplit(settings.upstream).path.rstrip("/")
        self._wire: Wire | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connections that live as long as the block, in one event loop."""
        settings = self._settings
        self._wire = Wire(settings.upstream, settings.connect_s, settings.silence_s, settings.keepalive_s)
        try:
            yield
        finally:
            self._wire.close()
            self._wire = None

    async def send(
        self,
        method: str,
        path: str,
        query: str,
        headers: list[Raw],
        body: Body,
        waits: Callable[[], None] | None = None,
    ) -> Answer:
        """Send a request and wait for the head of the answer.

        Args:
            method: of HTTP.
            path: with its escapes, from `/v1` on.
            query: without the question mark; may be empty.
            headers: as they came, without those of the client's connection.
            body: whole, in pieces, or none.
            waits: as Wire.send takes it.

        Raises:
            Refusal: 502, it can't be reached or does not speak HTTP; 504, it was silent for too long.
            Exception: what the pieces of the body raised.
        """
        assert self._wire is not None, "requests are sent within open()"
        target = f"{self._below}{path}?{query}" if query else self._below + path
        try:
            return await self._wire.send(method, target.encode("latin-1"), headers, body, waits)
        except UpstreamFault as fault:
            kinds: dict[type[UpstreamFault], tuple[int, str]] = {
                Silent: (504, "upstream_timeout"),
                Unreachable: (502, "upstream_unreachable"),
            }
            status, code = kinds.get(type(fault), (502, "upstream_broken"))
            raise Refusal(status, code, f"the upstream {fault}") from None

    async def fetch(self, url: str) -> bytes:
        """What is at a URL of the operator's own (an issuer's keys).

        Raises:
            httpx2.HTTPError, ValueError: it could not be had, or is too long.
        """
        content = b""
        async with (
            httpx2.AsyncClient(timeout=FETCH_S, trust_env=False) as client,
            client.stream("GET", url, headers={"Accept": "application/json"}) as answer,
        ):
            answer.raise_for_status()
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > MOST_FETCHED:
                    raise ValueError("too long")
        return content
