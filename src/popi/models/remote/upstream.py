"""The client for all model APIs: concurrency, time limits, retries and usage.

It is independent of the format of requests, which `openai`, `anthropic` and `vllm` define.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

from pydantic import SecretStr
from yarl import URL

from popi.config.http import HttpConfig, http_of_environment
from popi.errors import ConfigError, UpstreamError
from popi.models.remote.api_url import ApiUrl
from popi.models.remote.http import HttpClient, HttpFault, HttpSession
from popi.models.remote.retries import Retries, retry_after, worth_a_retry
from popi.models.remote.usage import Prices, Usage

TOTAL_S = 300.0
"""Timeout in seconds of one attempt of a request, from the first byte sent to the last one read."""
FOR_ALL = {401: "key", 402: "credit", 403: "permission", 404: "URL and model"}
"""Statuses that every request of this kind would get, and their usual cause."""
MAX_ANSWER_BYTES = 2**26
"""Maximum size of a decompressed response; log-probs of a full context take a few MiB."""
SHOWN = 300
"""Maximum characters of a server's message to quote in an error."""

ReadTokens = Callable[[dict[str, Any]], tuple[int, int] | None]


class Upstream:
    """A server with a model API.

    Args:
        api: the base URL of requests.
        key: sent as `key_header` and never shown; None sends none.
        key_header: name and format of the header, as ``("Authorization", "Bearer {}")``.
        headers: further headers.
        concurrency: maximum concurrent requests per session.
        http: proxies, certificates, time limits; by default those configured by POPI_HTTP.
        total_s: timeout of one attempt of a request.
        retries: when to retry.
        prices: per million tokens, for `usage.cost`.

    Raises:
        ConfigError: if `concurrency` is below 1, or the file in POPI_HTTP is invalid.
    """

    def __init__(
        self,
        api: ApiUrl,
        *,
        key: SecretStr | None = None,
        key_header: tuple[str, str] = ("Authorization", "Bearer {}"),
        headers: Mapping[str, str] | None = None,
        concurrency: int = 8,
        http: HttpConfig | None = None,
        total_s: float = TOTAL_S,
        retries: Retries | None = None,
        prices: Prices | None = None,
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"concurrency must be at least 1; got {concurrency}")
        self.api = api
        self.concurrency = concurrency
        self.http, self.total_s, self.retries = http or http_of_environment(), total_s, retries or Retries()
        self.usage = Usage(prices)
        self._key, self._key_header, self._headers = key, key_header, dict(headers or {})

    def __repr__(self) -> str:
        return f"Upstream({self.url!r})"

    @property
    def url(self) -> str:
        """Its URL without the query, safe to show."""
        return self.api.base

    @asynccontextmanager
    async def session(self) -> AsyncIterator["Session"]:
        """Connections that stay open for the duration of the `async with` block, in one event loop."""
        async with self._client.session() as client:
            yield Session(self, client)

    @cached_property
    def _client(self) -> HttpClient:
        return HttpClient(self.http, decompress=True)

    def headers_with_key(self) -> list[tuple[str, str]]:
        """A request's headers. Built only when sending, so that no stored object contains the key."""
        headers = {"content-type": "application/json", "accept": "*/*", "user-agent": "popi"} | self._headers
        if self._key is not None:
            name, form = self._key_header
            headers[name] = form.format(self._key.get_secret_value())
        return list(headers.items())

    def scrub(self, text: str) -> str:
        """`text` without the key, in case a server included it."""
        key = self._key.get_secret_value() if self._key is not None else ""
        return text.replace(key, "[key]") if key else text


class Session:
    """An upstream's open connections (see `Upstream.session`)."""

    def __init__(self, upstream: Upstream, client: HttpSession) -> None:
        self.upstream, self._client = upstream, client
        # Otherwise, waiting for a connection would count towards a request's timeouts.
        self._slots = asyncio.Semaphore(min(upstream.concurrency, upstream.http.connections))

    async def post(
        self, path: str, body: Mapping[str, Any], tokens: ReadTokens | None = None, api: ApiUrl | None = None
    ) -> dict[str, Any]:
        """Send JSON and receive JSON. Retries included, this takes one of the `concurrency` slots.

        Args:
            path: appended to the upstream's URL.
            body: the request.
            tokens: reads (input, output) tokens from the response, for `usage`.
            api: base URL to use instead of the upstream's own.

        Raises:
            UpstreamError: if the request was refused, failed or timed out, or the response is not a JSON object.
        """
        upstream, api = self.upstream, api or self.upstream.api
        async with self._slots:
            retry = 0
            while True:
                upstream.usage.requests += 1
                upstream.usage.retries += retry > 0
                try:
                    return await self._try(api, path, body, tokens)
                except _Temporary as failure:
                    wait = upstream.retries.wait(retry, failure.requested_wait)
                    if wait is None:
                        raise _given_up(failure, retry, upstream.retries) from None
                retry += 1
                await asyncio.sleep(wait)

    async def _try(self, api: ApiUrl, path: str, body: Mapping[str, Any], tokens: ReadTokens | None) -> dict[str, Any]:
        upstream, content = self.upstream, json.dumps(body).encode()
        url, target = URL(api.at(path), encoded=True), api.base + path  # messages don't show the query
        try:
            async with asyncio.timeout(upstream.total_s):
                reply = await self._client.send("POST", url, upstream.headers_with_key(), content)
                try:
                    await reply.whole(MAX_ANSWER_BYTES)
                finally:
                    reply.close()
        except TimeoutError:
            raise _Temporary(f"{target}: no complete response within {upstream.total_s:g} seconds") from None
        except HttpFault as fault:
            message = upstream.scrub(f"{target}: the server {fault}")
            if fault.lasting:
                raise UpstreamError(message, fault=fault.kind, affects_all=fault.kind != "broken") from None
            raise _Temporary(message, fault=fault.kind) from None
        if 200 <= reply.status < 300:
            answer = _json(reply.body)
            if not isinstance(answer, dict):
                shown = upstream.scrub(reply.body.decode(errors="replace"))[:SHOWN]
                raise UpstreamError(
                    f"{target}: the response is not a JSON object but {shown!r}; is this the URL of a model API?",
                    status=reply.status,
                )
            if answer.get("error"):  # gateways report failures of their upstream with a success status
                words = upstream.scrub(_server_message(reply.body))
                message = upstream.scrub(f"{target}: the response is an error: {words}")
                raise UpstreamError(message, status=reply.status, server_message=words)
            if tokens is not None:
                upstream.usage.add(tokens(answer))
            return answer
        status = reply.status
        words = upstream.scrub(_server_message(reply.body))
        message = upstream.scrub(f"{target}: {status} {reply.reason}: {words}")
        if worth_a_retry(status):
            raise _Temporary(message, status, retry_after(reply.named), server_message=words)
        if status in FOR_ALL:
            message += f"; check the {FOR_ALL[status]}"
            if status in (401, 403) and upstream._key is None:
                message += " (no key was sent; set its environment variable with key_env or --key-env)"
        raise UpstreamError(message, status=status, affects_all=status in FOR_ALL, server_message=words)


class _Temporary(Exception):
    """A failure that a retry may fix; `requested_wait` is the wait in seconds that the server asked for."""

    def __init__(
        self,
        message: str,
        status: int | None = None,
        requested_wait: float | None = None,
        fault: str | None = None,
        server_message: str = "",
    ) -> None:
        super().__init__(message)
        self.status, self.requested_wait, self.fault = status, requested_wait, fault
        self.server_message = server_message


def _given_up(failure: _Temporary, retries: int, policy: Retries) -> UpstreamError:
    if failure.requested_wait is not None and failure.requested_wait > policy.max_wait_s:
        wait = f"{failure.requested_wait:g} seconds, longer than {policy.max_wait_s:g}"
        end = f"the server asks to wait {wait}; try again later"
    else:
        end = f"gave up after {retries + 1} attempts"
    return UpstreamError(
        f"{failure}; {end}",
        status=failure.status,
        fault=failure.fault,
        transient=True,
        server_message=failure.server_message,
    )


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _server_message(content: bytes) -> str:
    """A server's error message, which each kind of server puts in a different field."""
    answer = _json(content)
    if isinstance(answer, list) and answer:  # Gemini's OpenAI path
        answer = answer[0]
    fields = answer if isinstance(answer, dict) else {}
    error = fields.get("error", fields)
    words = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    text = words if isinstance(words, str) else content.decode(errors="replace")
    return " ".join(text.split())[:SHOWN] or "(no message)"
