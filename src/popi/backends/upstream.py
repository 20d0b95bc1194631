"""One client for every model API: how many requests at once, how long, how often again, and what they took.

The only outgoing HTTP of popi. Knows nothing of what is sent: that is `openai`, `anthropic` and `vllm`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from pydantic import SecretStr

from popi.backends.key import checked_url
from popi.backends.retries import Retries, retry_after, worth_a_retry
from popi.backends.usage import Prices, Usage
from popi.errors import ConfigError, UpstreamError

# What may pass: no connection, a cut one, or none in time. A protocol error of our own making would come again.
PASSING = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError)
FOR_ALL = {401: "key", 402: "credit", 403: "permission", 404: "URL and model"}
"""Statuses that every request of this kind would meet, and what they are about."""
SHOWN = 300
"""Most characters of a server's own words in an error message."""

ReadTokens = Callable[[dict[str, Any]], tuple[int, int] | None]


@dataclass(frozen=True)
class Limits:
    """Time limits of one try of one request, in seconds.

    Attributes:
        connect: to reach the server.
        read: without a single byte from it.
        total: from the first byte sent to the last one read.
    """

    connect: float = 10.0
    read: float = 120.0
    total: float = 300.0


class Upstream:
    """A server with a model API.

    Args:
        url: what the paths of requests are put behind.
        key: sent as `key_header`, shown nowhere; None sends none.
        key_header: name and form of the header, as ``("Authorization", "Bearer {}")``.
        headers: further headers.
        concurrency: most requests under way at once, in one session.
        limits: time limits.
        retries: when to ask again.
        prices: per million tokens, for `usage.cost`.

    Raises:
        ConfigError: the URL is not one, or `concurrency` is below 1.
    """

    def __init__(
        self,
        url: str,
        *,
        key: SecretStr | None = None,
        key_header: tuple[str, str] = ("Authorization", "Bearer {}"),
        headers: Mapping[str, str] | None = None,
        concurrency: int = 8,
        limits: Limits | None = None,
        retries: Retries | None = None,
        prices: Prices | None = None,
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"concurrency must be at least 1; got {concurrency}")
        self.url = checked_url(url)
        self.concurrency = concurrency
        self.limits, self.retries = limits or Limits(), retries or Retries()
        self.usage = Usage(prices)
        self._key, self._key_header, self._headers = key, key_header, dict(headers or {})

    def __repr__(self) -> str:
        return f"Upstream({self.url!r})"

    @asynccontextmanager
    async def session(self) -> AsyncIterator["Session"]:
        """Connections that live as long as the `async with` block, in one event loop."""
        limits = self.limits
        async with httpx2.AsyncClient(
            headers=self._headers,
            timeout=httpx2.Timeout(limits.read, connect=limits.connect, pool=None),
            # Session counts the requests: waiting for a connection would eat up their time limits.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=self.concurrency),
            follow_redirects=False,  # a redirect would carry the key to another server
        ) as client:
            yield Session(self, client)

    def _auth(self, request: httpx2.Request) -> httpx2.Request:
        # Put in at the last moment: the client's own headers, and what prints them, never hold the key.
        if self._key is not None:
            name, form = self._key_header
            request.headers[name] = form.format(self._key.get_secret_value())
        return request

    def scrub(self, text: str) -> str:
        """`text` without the key, should a server have put it in."""
        key = self._key.get_secret_value() if self._key is not None else ""
        return text.replace(key, "[key]") if key else text


class Session:
    """An upstream's open connections (see `Upstream.session`)."""

    def __init__(self, upstream: Upstream, client: httpx2.AsyncClient) -> None:
        self.upstream, self._client = upstream, client
        self._slots = asyncio.Semaphore(upstream.concurrency)

    async def post(
        self, path: str, body: Mapping[str, Any], tokens: ReadTokens | None = None, url: str | None = None
    ) -> dict[str, Any]:
        """Send JSON, get JSON; with retries, all of them in one of the `concurrency` places.

        Args:
            path: put behind the upstream's URL.
            body: the request.
            tokens: reads (input, output) tokens off the answer, for `usage`.
            url: put before `path` instead of the upstream's URL.

        Raises:
            UpstreamError: refused, not reached in time or at all, or answered with something other than an object.
        """
        upstream, target = self.upstream, (url or self.upstream.url) + path
        async with self._slots:
            retry = 0
            while True:
                upstream.usage.requests += 1
                upstream.usage.retries += retry > 0
                try:
                    return await self._try(target, body, tokens)
                except _Passing as failure:
                    wait = upstream.retries.wait(retry, failure.asked)
                    if wait is None:
                        raise _given_up(failure, retry, upstream.retries) from None
                retry += 1
                await asyncio.sleep(wait)

    async def _try(self, target: str, body: Mapping[str, Any], tokens: ReadTokens | None) -> dict[str, Any]:
        upstream = self.upstream
        try:
            async with asyncio.timeout(upstream.limits.total):
                reply = await self._client.post(target, json=body, auth=upstream._auth)
        except (TimeoutError, *PASSING) as error:
            raise _Passing(f"{target}: {_reason(error, upstream.limits)}") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise UpstreamError(upstream.scrub(f"{target}: {type(error).__name__}: {error}")) from None
        if reply.is_success:
            answer = _json(reply)
            if not isinstance(answer, dict):
                shown = upstream.scrub(reply.text)[:SHOWN]
                raise UpstreamError(
                    f"{target}: answered no JSON object but {shown!r}; is this the URL of a model API?",
                    status=reply.status_code,
                )
            if answer.get("error"):  # gateways report what failed behind them in an answer that is none
                words = upstream.scrub(_words(reply))
                message = upstream.scrub(f"{target}: the answer is an error: {words}")
                raise UpstreamError(message, status=reply.status_code, words=words)
            if tokens is not None:
                upstream.usage.add(tokens(answer))
            return answer
        status = reply.status_code
        words = upstream.scrub(_words(reply))
        message = upstream.scrub(f"{target}: {status} {reply.reason_phrase}: {words}")
        if worth_a_retry(status):
            raise _Passing(message, status, retry_after(reply.headers), words)
        if status in FOR_ALL:
            message += f"; check the {FOR_ALL[status]}"
            if status in (401, 403) and upstream._key is None:
                message += " (no key was sent: name its environment variable with key_env, --key-env)"
        raise UpstreamError(message, status=status, for_all=status in FOR_ALL, words=words)


class _Passing(Exception):
    """A failure that a retry may cure; `asked` is the wait in seconds that the server asked for."""

    def __init__(self, message: str, status: int | None = None, asked: float | None = None, words: str = "") -> None:
        super().__init__(message)
        self.status, self.asked, self.words = status, asked, words


def _given_up(failure: _Passing, retries: int, policy: Retries) -> UpstreamError:
    if failure.asked is not None and failure.asked > policy.longest:
        end = f"the server asks to wait {failure.asked:g} seconds, longer than {policy.longest:g}; try again later"
    else:
        end = f"given up after {retries + 1} tries"
    return UpstreamError(f"{failure}; {end}", status=failure.status, passing=True, words=failure.words)


def _reason(error: Exception, limits: Limits) -> str:
    if isinstance(error, httpx2.ConnectTimeout):
        return f"no connection within {limits.connect:g} seconds"
    if isinstance(error, httpx2.TimeoutException):
        return f"nothing came for {limits.read:g} seconds"
    if isinstance(error, TimeoutError):
        return f"no whole answer within {limits.total:g} seconds"
    kind = "can't be reached" if isinstance(error, httpx2.ConnectError) else "the connection was cut"
    return f"{kind} ({error or type(error).__name__})"


def _json(reply: httpx2.Response) -> Any:
    try:
        return json.loads(reply.content)
    except (ValueError, RecursionError):
        return None


def _words(reply: httpx2.Response) -> str:
    """A server's own words about an error: OpenAI, Anthropic and vLLM put them in three places."""
    answer = _json(reply)
    found = answer if isinstance(answer, dict) else {}
    error = found.get("error", found)
    words = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    text = words if isinstance(words, str) else reply.text
    return " ".join(text.split())[:SHOWN] or "(no message)"
