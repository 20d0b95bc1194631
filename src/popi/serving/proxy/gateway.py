"""The path of every request, from the client to the upstream and back.

A raw ASGI application, which saves request objects and unneeded parsing.
"""

import asyncio
from contextlib import nullcontext
from dataclasses import replace
from time import perf_counter

from starlette.types import Receive, Scope, Send

from popi.errors import AuthError
from popi.models.remote.http import Body, HttpFault
from popi.serving.interfaces import Caller, Keys, Recorder, Summaries
from popi.serving.proxy.body import ClientGone
from popi.serving.proxy.exchange import Exchange
from popi.serving.proxy.headers import Raw, RequestHeaders, answer_headers
from popi.serving.proxy.ids import Pseudonyms
from popi.serving.proxy.inject import Api
from popi.serving.proxy.jwt_claims import Tokens
from popi.serving.proxy.limits import Limits
from popi.serving.proxy.logs import Record, log, log_fault
from popi.serving.proxy.metrics import Metrics
from popi.serving.proxy.models import merged_models
from popi.serving.proxy.paths import canonical
from popi.serving.proxy.refusals import Refusal, answer, not_authenticated
from popi.serving.proxy.request_body import TOKEN_COUNT_PATHS, RequestBodies
from popi.serving.proxy.settings import ProxySettings
from popi.serving.proxy.tracing import Tracing
from popi.serving.proxy.upstream import Upstreams

PERSONALISED: dict[str, Api] = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/responses/input_tokens": "responses",
    "/v1/messages/count_tokens": "messages",
}
MODELS = "/v1/models"
CLIENT_GONE = 499
"""The status to log if the client hung up before a response."""
SHUTTING_DOWN = Refusal(503, "shutting_down", "the gateway is shutting down; try again", retry_after=1)
_NO_SPAN = nullcontext()


class Gateway:
    """Everything under ``/v1/``, as an ASGI application.

    Args:
        settings: see ProxySettings.
        keys: authenticates callers.
        summaries: looks up users' summaries.
        upstreams: the model APIs; their connections must be open.
        tokens: verifies the tokens that name users; None ignores tokens.
        pseudonyms: replaces user ids.
        metrics: the proxy's metrics.
        tracing: None if tracing is off.
        limits: limits per key.
        recorder: records answers for tenants that opted in to capture.
    """

    def __init__(
        self,
        settings: ProxySettings,
        keys: Keys,
        summaries: Summaries,
        upstreams: Upstreams,
        tokens: Tokens | None,
        pseudonyms: Pseudonyms,
        metrics: Metrics,
        tracing: Tracing | None,
        limits: Limits,
        recorder: Recorder | None = None,
    ) -> None:
        self._settings, self._keys, self._upstreams = settings, keys, upstreams
        self._metrics, self._tracing, self._limits = metrics, tracing, limits
        self._bodies = RequestBodies(settings, summaries, upstreams, tokens, pseudonyms, metrics, limits, recorder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = perf_counter()
        method: str = scope["method"]
        path: str = scope["raw_path"].decode("latin-1")
        normal_path = path if path in PERSONALISED else canonical(path)
        api = PERSONALISED.get(normal_path or "") if method == "POST" else None
        models = normal_path == MODELS and method == "GET"
        route = "count" if api is not None and normal_path in TOKEN_COUNT_PATHS else api
        record = Record(route or ("models" if models else "other"), method)
        if normal_path is not None and (api is not None or models):
            path = normal_path
        exchange = Exchange(scope, receive, send, path, api, record, began)
        self._metrics.in_flight.inc()
        try:
            with self._tracing.span(scope["headers"], record) if self._tracing is not None else _NO_SPAN:
                try:
                    if normal_path is None:
                        raise Refusal(400, "path", "the path has a '.' or '..' segment, or nested escapes")
                    if not path.startswith("/v1/"):
                        raise Refusal(404, "no_such_path", "the paths of model APIs begin with /v1/ here")
                    await self._serve(exchange)
                except ClientGone:
                    self._client_gone(record)
                except asyncio.CancelledError:
                    if not exchange.watch.client_gone():
                        await self._refuse(exchange, SHUTTING_DOWN)
                        raise
                    self._client_gone(record)
                except Refusal as refusal:
                    await self._refuse(exchange, refusal)
                except AuthError as error:
                    await self._refuse(exchange, not_authenticated(error))
                except Exception as error:
                    log_fault("gateway error", error)
                    await self._refuse(
                        exchange, Refusal(500, "gateway_fault", "internal error in the gateway; see its log")
                    )
        finally:
            exchange.watch.end()
            self._metrics.in_flight.dec()
            record.total_ms = (perf_counter() - began) * 1000
            labels = record.route, record.status, record.personalized or "", record.upstream or ""
            self._metrics.requests.labels(*labels).inc()
            if self._settings.log_requests:
                log(record)

    def forget(self) -> None:
        """Drop users' summaries and ids from memory; they are recomputed when needed."""
        self._bodies.forget()

    async def _serve(self, exchange: Exchange) -> None:
        """Check the caller, then forward. An error before the response has started becomes the response."""
        record = exchange.record
        headers = exchange.headers = RequestHeaders(exchange.scope["headers"], self._bodies.rules)
        auth_began = perf_counter()
        caller = _in_tenant(await self._authenticate(headers.key), headers.tenant)
        exchange.waited = perf_counter() - auth_began
        record.key_id, record.tenant = caller.key_id, caller.tenant
        if record.route == "other":
            self._check_scope(caller)
        self._limits.enter(caller.key_id)
        try:
            if record.route == "models" and self._upstreams.only is None:
                await self._list_models(exchange, caller.tenant)
                return
            await self._call(exchange, await self._bodies.read(exchange, caller))
        finally:
            self._limits.leave(caller.key_id, exchange.held)

    async def _list_models(self, exchange: Exchange, tenant: str) -> None:
        """Respond with the models of all upstreams that a tenant may use."""
        faults = self._metrics.upstream_failures
        exchange.watch_client()
        body = await merged_models(
            self._upstreams.of(tenant), exchange.dialect, lambda name: faults.labels("models", name).inc()
        )
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await exchange.start(200, headers)
        await exchange.send({"type": "http.response.body", "body": body})

    async def _authenticate(self, key: str | None) -> Caller:
        try:
            if (caller := self._keys.cached(key)) is not None:
                return caller
            async with asyncio.timeout(self._settings.auth_timeout_s):
                return await self._keys.authenticate(key)
        except AuthError:
            raise
        except Exception as error:  # fail closed, whatever is wrong with the store
            log_fault("can't check keys", error)
            raise Refusal(
                503, "keys_unavailable", "keys can't be checked right now; try again soon", retry_after=1
            ) from None

    def _check_scope(self, caller: Caller) -> None:
        allowed = {"app": ("app", "admin"), "admin": ("admin",), "nobody": ()}[self._settings.other_paths]
        if caller.scope not in allowed:
            raise Refusal(
                403, "path_not_allowed", f"a key with scope {caller.scope!r} may not use this path of the upstream"
            )

    def _with_upstream_key(self, exchange: Exchange) -> list[Raw]:
        passed, keys = exchange.headers.passed, exchange.upstream.keys
        if keys and not exchange.headers.own_upstream_key:
            passed.append(keys[exchange.dialect])
        return self._tracing.inject(passed) if self._tracing is not None else passed

    async def _call(self, exchange: Exchange, body: Body) -> None:
        """Send the request upstream and stream the answer back."""
        record, metrics = exchange.record, self._metrics
        query = exchange.scope["query_string"].decode("latin-1")
        sent = perf_counter()
        try:
            passed = self._with_upstream_key(exchange)
            if exchange.api is not None:  # other bodies may not have been read yet
                exchange.watch_client()
            reply = await exchange.upstream.send(record.method, exchange.path[3:], query, passed, body)
        except Refusal as refusal:
            if refusal.code.startswith("upstream_"):  # otherwise the client's body was refused
                metrics.upstream_failures.labels(refusal.code, record.upstream).inc()
            raise
        finally:
            record.before_upstream_ms = (sent - exchange.began) * 1000
            metrics.before_upstream.labels(record.route).observe(sent - exchange.began)
        elapsed = perf_counter() - sent
        try:
            headers = answer_headers(reply.headers)
            if reply.status in (204, 304):  # a content-length would describe the absent body (RFC 9110, 8.6)
                headers = [header for header in headers if header[0] != b"content-length"]
            if record.personalized is not None:
                headers.append((b"x-popi-personalized", record.personalized.encode()))
                if record.version is not None:
                    headers.append((b"x-popi-summary-version", b"%d" % record.version))
            tap, more = exchange.tap if reply.status == 200 else None, True
            if tap is not None:
                headers.append((b"x-popi-answer-id", tap.answer_id.encode()))
            await exchange.start(reply.status, headers)
            mask = exchange.upstream.mask() if reply.status >= 400 and not exchange.headers.own_upstream_key else None
            while more:
                piece, more = await reply.read()
                if mask is not None:
                    piece = mask(piece, more)
                await exchange.send({"type": "http.response.body", "body": piece, "more_body": more})
                if tap is not None:
                    tap.feed(piece)
            if tap is not None:
                tap.done(_encoding(reply.headers))
        except HttpFault:
            # Leave the answer unfinished; the server closes the connection, and the client sees what we saw.
            record.reason = "upstream_cut"
            metrics.upstream_failures.labels("cut", record.upstream).inc()
        finally:
            reply.close()
            record.upstream_ms = elapsed * 1000
            metrics.upstream.labels(record.route, record.upstream).observe(elapsed)

    async def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        record = exchange.record
        record.reason = refusal.code
        self._metrics.refusals.labels(refusal.code).inc()
        if exchange.started:
            return  # too late for another status; the server closes the connection
        headers, body = answer(refusal, exchange.dialect)
        if record.personalized is not None:
            headers.append((b"x-popi-personalized", record.personalized.encode()))
        await exchange.start(refusal.status, headers)
        await exchange.send({"type": "http.response.body", "body": body})

    def _client_gone(self, record: Record) -> None:
        record.status = record.status or CLIENT_GONE
        record.reason = "client_disconnected"
        self._metrics.client_disconnects.inc()


def _in_tenant(caller: Caller, tenant: str | None) -> Caller:
    """The caller, moved to the tenant that `x-popi-tenant` names; only an admin key may name another one."""
    if tenant is None or tenant == caller.tenant:
        return caller
    if caller.scope != "admin":
        raise Refusal(403, "not_allowed", "x-popi-tenant names a tenant that this key does not belong to")
    return replace(caller, tenant=tenant)


def _encoding(headers: list[Raw]) -> str:
    """An answer's content encoding."""
    values = [value for name, value in headers if name.lower() == b"content-encoding"]
    return values[0].decode("latin-1").strip().lower() if values else ""
