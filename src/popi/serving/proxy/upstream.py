"""Calls to the model API behind the gateway: nothing added, nothing decoded; its faults as refusals."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from yarl import URL

from popi.backends.http import Answer, Body, HttpClient, HttpFault, HttpSession
from popi.config.http import HttpConfig
from popi.serving.proxy.headers import Raw
from popi.serving.proxy.logs import LOGGER
from popi.serving.proxy.refusals import Refusal

MOST_FETCHED = 2**20
"""Maximum bytes of what `fetch` gets."""


class Upstream:
    """The server behind the gateway. Requests are sent within `open`.

    Args:
        url: where it is, without `/v1`.
        http: how it is reached.

    Raises:
        ConfigError: a certificate can't be used.
    """

    _session: HttpSession

    def __init__(self, url: str, http: HttpConfig) -> None:
        self._url, self._client = str(URL(url)).rstrip("/"), HttpClient(http)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connections that live as long as the block, in one event loop."""
        async with self._client.session() as self._session:
            yield

    async def send(self, method: str, path: str, query: str, headers: list[Raw], body: Body) -> Answer:
        """Send a request and wait for the head of the answer.

        Args:
            method: of HTTP.
            path: with its escapes, from `/v1` on.
            query: without the question mark; may be empty.
            headers: as they came, without those of the client's connection.
            body: whole, in pieces, or none.

        Raises:
            Refusal: 502, there is no answer; 504, it took too long.
            Exception: what the pieces of the body raised.
        """
        target = f"{path}?{query}" if query else path
        if not target.isascii():
            target = _text(target.encode("latin-1"))
        url = URL(self._url + target, encoded=True)
        try:
            return await self._session.send(method, url, [(_text(name), _text(value)) for name, value in headers], body)
        except HttpFault as fault:
            if fault.kind in ("certificate", "proxy"):  # for the operator to put right
                LOGGER.error("the upstream can't be used", extra={"fields": {"error": str(fault)}})
            status = 504 if fault.kind == "timeout" else 502
            raise Refusal(status, f"upstream_{fault.kind}", f"the upstream {fault}") from None

    async def fetch(self, url: str) -> bytes:
        """What is at a URL of the operator's own (an issuer's keys).

        Raises:
            HttpFault: it could not be had, or is too long.
        """
        answer = await self._session.send("GET", URL(url), [("accept", "application/json")])
        try:
            if answer.status != 200:
                raise HttpFault("broken", f"answered {answer.status}")
            return await answer.whole(MOST_FETCHED)
        finally:
            answer.close()


def _text(value: bytes) -> str:
    """For aiohttp, which writes text as UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
