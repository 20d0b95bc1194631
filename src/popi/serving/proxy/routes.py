"""Assemble the proxy: its routes, and the lifespan that they need."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from popi.config.http import HttpConfig
from popi.errors import AuthError
from popi.serving.interfaces import Keys, Recorder, Summaries
from popi.serving.proxy.gateway import Gateway
from popi.serving.proxy.headers import HeaderRules, RequestHeaders
from popi.serving.proxy.ids import Pseudonyms
from popi.serving.proxy.jwt_claims import Tokens
from popi.serving.proxy.limits import Limits
from popi.serving.proxy.metrics import Metrics
from popi.serving.proxy.refusals import Refusal, answer, not_authenticated
from popi.serving.proxy.settings import ProxySettings
from popi.serving.proxy.tracing import Tracing
from popi.serving.proxy.upstream import Outgoing, Upstreams


@dataclass(frozen=True)
class Proxy:
    """The parts of an assembled proxy.

    Attributes:
        routes: `/metrics` and everything under `/v1/`; list your own routes before them.
        gateway: serves `/v1/`, for applications that dispatch to it directly, which is faster than routing.
        lifespan: opens and closes the connections to the upstreams; serve requests within it.
        metrics: the proxy's metrics; other parts may add to its registry.
    """

    routes: list[BaseRoute]
    gateway: Gateway
    lifespan: Callable[[Any], AbstractAsyncContextManager[None]]
    metrics: Metrics


def proxy_routes(
    settings: ProxySettings,
    keys: Keys,
    summaries: Summaries,
    limits: Limits | None = None,
    recorder: Recorder | None = None,
    http: HttpConfig | None = None,
) -> Proxy:
    """Assemble the proxy.

    Args:
        settings: without an `id_secret`, one is generated for this process.
        keys: authenticates callers.
        summaries: looks up users' summaries.
        limits: limits per key, to share with other routes; by default from the settings.
        recorder: records answers for feedback, if given.
        http: settings for outgoing connections.

    Raises:
        ConfigError: a key or a certificate can't be read, or the packages for tracing are missing.
    """
    metrics = Metrics()
    outgoing = Outgoing(http or HttpConfig())
    tokens = Tokens(settings.jwt, outgoing.fetch) if settings.jwt is not None else None
    secret = settings.id_secret.get_secret_value().encode() if settings.id_secret is not None else None
    gateway = Gateway(
        settings,
        keys,
        summaries,
        Upstreams(settings, outgoing),
        tokens,
        Pseudonyms(secret or secrets.token_bytes(32)),
        metrics,
        Tracing() if settings.otel else None,
        limits or Limits.from_settings(settings),
        recorder,
    )

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with outgoing.open():
            yield

    routes: list[BaseRoute] = [Route("/v1/{path:path}", gateway)]
    if settings.metrics_access != "nobody":
        routes.append(Route("/metrics", _MetricsPage(settings, keys, metrics)))
    return Proxy(routes, gateway, lifespan, metrics)


class _MetricsPage:
    """`GET /metrics`."""

    def __init__(self, settings: ProxySettings, keys: Keys, metrics: Metrics) -> None:
        self._for_admins = settings.metrics_access == "admin"
        self._rules, self._keys, self._metrics = HeaderRules(settings), keys, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 200
        try:
            if self._for_admins:
                await self._check(scope)
            body = generate_latest(self._metrics.registry)
            headers = [(b"content-type", CONTENT_TYPE_PLAIN_0_0_4.encode()), (b"content-length", b"%d" % len(body))]
        except Refusal as refusal:
            status = refusal.status
            headers, body = answer(refusal, "openai")
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _check(self, scope: Scope) -> None:
        try:
            caller = await self._keys.authenticate(RequestHeaders(scope["headers"], self._rules).key)
        except AuthError as error:
            raise not_authenticated(error) from None
        except Refusal:
            raise
        except Exception:
            raise Refusal(503, "keys_unavailable", "keys can't be checked right now; try again soon") from None
        if caller.scope != "admin":
            raise Refusal(403, "not_allowed", "only admin keys may read the metrics")
