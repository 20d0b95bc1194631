"""The path of every request, from the client to the upstream and back.

A raw ASGI application, which saves request objects and unneeded parsing.
"""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, cast

from starlette.types import Receive, Scope, Send

from popi.errors import AuthError
from popi.models.remote.http import Body, HttpFault
from popi.serving.interfaces import Caller, Keys, Recorder, StoredSummary, Summaries
from popi.serving.proxy.block import Blocks
from popi.serving.proxy.body import Bodies, ClientGone, Hold, may_be_json, peek, read_whole, stream, too_long
from popi.serving.proxy.exchange import Exchange
from popi.serving.proxy.headers import HeaderRules, Raw, RequestHeaders, answer_headers
from popi.serving.proxy.identity import user_of
from popi.serving.proxy.ids import Pseudonyms, replace_ids, user_ids
from popi.serving.proxy.inject import Api, inject
from popi.serving.proxy.jwt_claims import Tokens
from popi.serving.proxy.limits import Limits
from popi.serving.proxy.logs import Record, log, log_fault
from popi.serving.proxy.metrics import Metrics
from popi.serving.proxy.models import merged_models, model_in
from popi.serving.proxy.paths import canonical
from popi.serving.proxy.refusals import Refusal, answer, not_authenticated
from popi.serving.proxy.settings import ProxySettings
from popi.serving.proxy.strict_json import parse, serialise
from popi.serving.proxy.tracing import Tracing
from popi.serving.proxy.upstream import Upstreams

PERSONALISED: dict[str, Api] = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/responses/input_tokens": "responses",
    "/v1/messages/count_tokens": "messages",
}
TOKEN_COUNT_PATHS = ("/v1/responses/input_tokens", "/v1/messages/count_tokens")
"""Paths that only count a request's tokens, including the block's: there is no answer to record."""
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
        self._recorder = recorder
        self._settings, self._keys, self._summaries = settings, keys, summaries
        self._upstreams, self._tokens, self._pseudonyms = upstreams, tokens, pseudonyms
        self._metrics, self._tracing = metrics, tracing
        self._rules = HeaderRules(settings)
        self._bodies, self._blocks = Bodies(settings), Blocks(settings.block)
        self._limits = limits

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
        self._blocks.forget()
        self._pseudonyms.forget()

    async def _serve(self, exchange: Exchange) -> None:
        """Check the caller, then forward. An error before the response has started becomes the response."""
        record = exchange.record
        headers = exchange.headers = RequestHeaders(exchange.scope["headers"], self._rules)
        asked = perf_counter()
        caller = _in_tenant(await self._authenticate(headers.key), headers.tenant)
        exchange.waited = perf_counter() - asked
        record.key_id, record.tenant = caller.key_id, caller.tenant
        if record.route == "other":
            self._check_scope(caller)
        self._limits.enter(caller.key_id)
        try:
            if record.route == "models" and self._upstreams.only is None:
                await self._list_models(exchange, caller.tenant)
                return
            if exchange.api is None:
                body = await self._other_body(exchange, caller)
            else:
                body = await self._personalised_body(exchange, exchange.api, caller)
            await self._call(exchange, body)
        finally:
            self._limits.leave(caller.key_id, exchange.held)

    def _hold(self, exchange: Exchange, caller: Caller) -> Hold:
        """A function that counts bytes of this request's body towards its key's limit."""

        def hold(size: int) -> None:
            self._limits.hold(caller.key_id, size)
            exchange.held += size

        return hold

    def _route(self, exchange: Exchange, tenant: str, model: str | None) -> None:
        """Choose the request's upstream."""
        chosen = exchange.upstream = self._upstreams.choose(tenant, exchange.dialect, model)
        exchange.record.upstream = chosen.name

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

    async def _claimed(self, exchange: Exchange) -> str | None:
        """The user id in the request's token; None without a token."""
        if self._tokens is None or exchange.headers.jwt is None:
            return None
        return await self._tokens.user_id(exchange.headers.jwt)

    async def _personalised_body(self, exchange: Exchange, api: Api, caller: Caller) -> bytes:
        """The request's body with the user's summary and without user ids."""
        settings, headers, hold = self._settings, exchange.headers, self._hold(exchange, caller)
        raw = await read_whole(exchange.receive, headers.length, settings.max_body_bytes, settings.body_timeout_s, hold)
        exchange.watch_client()
        claimed = await self._claimed(exchange)
        plain = await self._bodies.plain(raw, headers.encoding, hold)
        self._name_user_upstream(headers, caller)
        async with self._bodies.turn(len(plain), caller.key_id) as run:
            body, ids = await run(self._parse, plain)
            self._route(exchange, caller.tenant, self._upstreams.model(body))
            user_id = user_of(caller, claimed, headers.ids, ids, settings.identity_fields)
            summary = await self._summary(exchange, caller.tenant, user_id)
            block = self._blocks.text(summary.text) if summary is not None else None
            changed, placed = await run(self._rewrite, body, caller.tenant, api, block)
            if summary is not None and placed:
                exchange.record.personalized, exchange.record.version = "applied", summary.version
            elif summary is not None:
                self._not_personalised(exchange.record, "body")
            recorder = self._recorder if exchange.path not in TOKEN_COUNT_PATHS else None
            if recorder is not None and user_id is not None and not headers.off:
                exchange.tap = recorder.begin(caller.tenant, user_id, api, body, summary if placed else None)
        return plain if changed is None else changed

    def _parse(self, plain: bytes) -> tuple[dict[str, Any], dict[str, str]]:
        """The parsed body, and the user ids in it."""
        body = parse(plain, self._settings.max_body_values, self._settings.max_body_depth)
        return body, user_ids(body)

    def _rewrite(self, body: dict[str, Any], tenant: str, api: Api, block: str | None) -> tuple[bytes | None, bool]:
        """The body with the block and without user ids, or `None` if nothing changed; and whether the block was
        inserted."""
        changed = replace_ids(body, self._pseudonym(tenant))
        personalised = inject(api, body, block) if block is not None else None
        return serialise(personalised or body) if changed or personalised else None, personalised is not None

    def _without_ids(self, plain: bytes, tenant: str) -> tuple[bytes, str | None]:
        """A body that is not personalised, without user ids; and the model that it names."""
        body = parse(plain, self._settings.max_body_values, self._settings.max_body_depth)
        model = self._upstreams.model(body)
        return serialise(body) if replace_ids(body, self._pseudonym(tenant)) else plain, model

    def _pseudonym(self, tenant: str) -> Callable[[str], str] | None:
        return partial(self._pseudonyms.of, tenant) if self._settings.ids_upstream == "hashed" else None

    async def _summary(self, exchange: Exchange, tenant: str, user_id: str | None) -> StoredSummary | None:
        """The user's summary, if it is wanted and available in time. Never raises, never waits longer."""
        record, began, timeout = exchange.record, perf_counter(), self._settings.summary_timeout_ms / 1000
        if exchange.headers.off or user_id is None:
            record.personalized = "off" if exchange.headers.off else "none"
            return None
        if (cached := self._summaries.cached(tenant, user_id)) is not None:
            self._metrics.lookup.observe(perf_counter() - began)
            record.personalized = "none"
            return cached.summary
        # Not wait_for, which would also wait until the cancelled lookup has ended, however long that takes.
        lookup = asyncio.ensure_future(self._summaries.summary_of(tenant, user_id))
        lookup.add_done_callback(_forget)
        await asyncio.wait((lookup,), timeout=timeout - min(exchange.waited, timeout / 2))  # less the time for the key
        self._metrics.lookup.observe(perf_counter() - began)
        if not lookup.done():
            lookup.cancel()
            self._not_personalised(record, "slow")
            return None
        try:
            summary = lookup.result()
        except (Exception, asyncio.CancelledError) as error:
            log_fault("can't read a summary", error)
            self._not_personalised(record, "store")
            return None
        record.personalized = "none"
        return summary

    def _not_personalised(self, record: Record, reason: str) -> None:
        record.personalized, record.reason = "failed", reason
        self._metrics.failures.labels(reason).inc()

    def _name_user_upstream(self, headers: RequestHeaders, caller: Caller) -> None:
        for name, user_id in headers.named.items():
            if name in self._rules.hashed:
                headers.passed.append((name, self._pseudonyms.of(caller.tenant, user_id).encode()))

    async def _other_body(self, exchange: Exchange, caller: Caller) -> Body:
        """The body of a request that is not personalised: streamed, except that user ids are removed from JSON."""
        settings, headers, names = self._settings, exchange.headers, {name for name, _ in exchange.scope["headers"]}
        self._name_user_upstream(headers, caller)
        self._route(exchange, caller.tenant, model_in(exchange.path))
        if headers.length is not None and headers.length > settings.max_upload_bytes:
            raise too_long(settings.max_upload_bytes)
        if not headers.length and b"transfer-encoding" not in names:
            exchange.watch_client()
            return None if headers.length is None else b""
        beginning, receive = await peek(exchange.receive, settings.body_timeout_s)
        if headers.encoding in ("", "identity") and not may_be_json(beginning):
            if headers.length is not None:
                headers.passed.append((b"content-length", b"%d" % headers.length))
            return stream(receive, settings.max_upload_bytes, exchange.watch_client)
        hold = self._hold(exchange, caller)
        raw = await read_whole(receive, headers.length, settings.max_body_bytes, settings.body_timeout_s, hold)
        exchange.watch_client()
        plain = await self._bodies.plain(raw, headers.encoding, hold)
        if not plain or not may_be_json(plain):
            headers.passed += [(b"content-encoding", headers.encoding.encode())] if headers.encoding else []
            return raw
        async with self._bodies.turn(len(plain), caller.key_id) as run:
            body, model = await run(self._without_ids, plain, caller.tenant)
        if model is not None:
            self._route(exchange, caller.tenant, model)
        return cast(bytes, body)

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


def _forget(lookup: "asyncio.Future[StoredSummary | None]") -> None:
    """Retrieve the exception of an abandoned lookup, so that asyncio does not report it."""
    if not lookup.cancelled():
        lookup.exception()
