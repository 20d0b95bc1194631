"""The line that every request goes along, from the client to the upstream and back.

A raw ASGI application: no request object, no parsing of what is not needed.
"""

import asyncio
import re
from contextlib import nullcontext
from dataclasses import replace
from time import perf_counter

from starlette.types import Receive, Scope, Send

from popi.backends.http import Body, HttpFault
from popi.errors import AuthError
from popi.serving.interfaces import Caller, Keys, Recorder, StoredSummary, Summaries
from popi.serving.proxy.body import ClientGone, pass_on, read_whole, too_long
from popi.serving.proxy.exchange import Exchange
from popi.serving.proxy.headers import HeaderRules, Raw, RequestHeaders, answer_headers
from popi.serving.proxy.identity import user_of
from popi.serving.proxy.ids import Pseudonyms
from popi.serving.proxy.inject import Api
from popi.serving.proxy.jwt_claims import Tokens
from popi.serving.proxy.limits import Limits
from popi.serving.proxy.logs import Record, log, log_fault
from popi.serving.proxy.metrics import Metrics
from popi.serving.proxy.refusals import Refusal, answer
from popi.serving.proxy.rewrite import Rewriter
from popi.serving.proxy.settings import ProxySettings
from popi.serving.proxy.tracing import Tracing
from popi.serving.proxy.upstream import Upstream

PERSONALISED: dict[str, Api] = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}
CLIENT_GONE = 499
"""The status that is logged where nobody was left to be answered."""
_NO_SPAN = nullcontext()
# Names of folders that would lead out of /v1, and what some servers take for a slash.
_LEADING_OUT = re.compile(r"(?:^|/|%2f|\\|%5c)(?:\.|%2e){1,2}(?:$|/|%2f|\\|%5c|;)", re.IGNORECASE)


class Gateway:
    """Everything under ``/v1/``, as an ASGI application.

    Args:
        settings: see ProxySettings.
        keys: says who calls.
        summaries: says what is known of a user.
        upstream: must be open.
        tokens: verifies the tokens that name users; None where there are none.
        pseudonyms: what goes upstream in place of user ids.
        metrics: what is counted.
        tracing: None where it is off.
        limits: how much one key may ask for.
        recorder: looks on at answers of tenants that opted in to capture.
    """

    def __init__(
        self,
        settings: ProxySettings,
        keys: Keys,
        summaries: Summaries,
        upstream: Upstream,
        tokens: Tokens | None,
        pseudonyms: Pseudonyms,
        metrics: Metrics,
        tracing: Tracing | None,
        limits: Limits,
        recorder: Recorder | None = None,
    ) -> None:
        self._recorder = recorder
        self._settings, self._keys, self._summaries = settings, keys, summaries
        self._upstream, self._tokens, self._pseudonyms = upstream, tokens, pseudonyms
        self._metrics, self._tracing = metrics, tracing
        self._rules = HeaderRules(settings)
        self._rewriter = Rewriter(settings, pseudonyms)
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = perf_counter()
        method: str = scope["method"]
        path: str = scope["raw_path"].decode("latin-1")
        api = PERSONALISED.get(path) if method == "POST" else None
        record = Record(api or ("models" if path == "/v1/models" and method == "GET" else "other"), method)
        exchange = Exchange(scope, receive, send, path, api, record, began)
        self._metrics.under_way.inc()
        try:
            with self._tracing.span(scope["headers"], record) if self._tracing is not None else _NO_SPAN:
                try:
                    await self._serve(exchange)
                except ClientGone:
                    self._client_gone(record)
                except asyncio.CancelledError:
                    if not exchange.watch.client_gone():
                        raise
                    self._client_gone(record)
                except Refusal as refusal:
                    await self._refuse(exchange, refusal)
                except Exception as error:
                    log_fault("a fault of the gateway", error)
                    await self._refuse(
                        exchange, Refusal(500, "gateway_fault", "the gateway failed; its log says where")
                    )
        finally:
            exchange.watch.end()
            self._metrics.under_way.dec()
            record.total_ms = (perf_counter() - began) * 1000
            self._metrics.requests.labels(record.route, record.status, record.personalized or "").inc()
            if self._settings.log_requests:
                log(record)

    def forget(self) -> None:
        """Keep nothing in memory of users, their summaries and ids; it is made anew when it is needed."""
        self._rewriter.forget()

    async def _serve(self, exchange: Exchange) -> None:
        """Check who asks, then pass on. What raises before the answer has begun becomes the answer."""
        record = exchange.record
        if ("." in exchange.path or "%" in exchange.path) and _LEADING_OUT.search(exchange.path):
            raise Refusal(400, "path", "the path must not have '.' or '..' between its slashes")
        headers = exchange.headers = RequestHeaders(exchange.scope["headers"], self._rules)
        asked = perf_counter()
        caller = _in_tenant(await self._authenticate(headers.key), headers.tenant)
        exchange.waited = perf_counter() - asked
        record.key_id, record.tenant = caller.key_id, caller.tenant
        if record.route == "other":
            self._check_scope(caller)
        self._limits.enter(caller.key_id)
        try:
            if exchange.api is None:
                body = await self._other_body(exchange, caller)
            else:
                body = await self._personalised_body(exchange, exchange.api, caller)
            await self._call(exchange, body)
        finally:
            self._limits.leave(caller.key_id)

    async def _authenticate(self, key: str | None) -> Caller:
        try:
            if (known := self._keys.known(key)) is not None:
                return known
            async with asyncio.timeout(self._settings.auth_s):
                return await self._keys.authenticate(key)
        except AuthError as error:
            raise _refused(error) from None
        except Exception as error:  # whatever ails the store: what can't be told is refused
            log_fault("keys can't be checked", error)
            raise Refusal(503, "keys_unavailable", "keys can't be checked now; try again soon", retry_after=1) from None

    def _check_scope(self, caller: Caller) -> None:
        allowed = {"app": ("app", "admin"), "admin": ("admin",), "nobody": ()}[self._settings.other_paths]
        if caller.scope not in allowed:
            raise Refusal(
                403, "path_not_allowed", f"a key of scope {caller.scope!r} may not use this path of the upstream"
            )

    async def _user(self, exchange: Exchange, caller: Caller) -> str | None:
        headers = exchange.headers
        try:
            claimed = None
            if self._tokens is not None and headers.jwt is not None:
                exchange.watch_client()
                claimed = await self._tokens.user_id(headers.jwt)
            found = exchange.rewriting.found if exchange.rewriting is not None else ()
            return user_of(caller, claimed, headers.ids, found, self._settings.identity_fields)
        except AuthError as error:
            raise _refused(error) from None

    async def _personalised_body(self, exchange: Exchange, api: Api, caller: Caller) -> bytes:
        """The request's body with the user's summary in it and no user id."""
        settings, headers, record = self._settings, exchange.headers, exchange.record
        raw = await read_whole(exchange.receive, headers.length, settings.max_body_bytes, settings.body_s)
        exchange.rewriting = rewriting = self._rewriter.read(raw, headers.encoding, api)
        user_id = await self._user(exchange, caller)
        self._name_user_upstream(headers, caller)
        summary: StoredSummary | None = None
        if headers.off:
            record.personalized = "off"
        elif user_id is None:
            record.personalized = "none"
        else:
            summary = await self._summary(exchange, caller.tenant, user_id)
        body, put_in = self._rewriter.write(rewriting, caller.tenant, summary.text if summary is not None else None)
        if summary is not None:
            if put_in:
                record.personalized, record.version = "applied", summary.version
            else:
                self._not_personalised(record, "body")
        if self._recorder is not None and user_id is not None and not headers.off and rewriting.members is not None:
            shown = summary if put_in else None
            exchange.tap = self._recorder.begin(caller.tenant, user_id, api, rewriting.body, shown)
        if body is not raw:
            headers.drop(b"content-encoding")
        return body

    async def _summary(self, exchange: Exchange, tenant: str, user_id: str) -> StoredSummary | None:
        """The user's summary, if it can be had in time. Never raises, never waits longer."""
        record, began, most = exchange.record, perf_counter(), self._settings.summary_ms / 1000
        if (known := self._summaries.at_hand(tenant, user_id)) is not None:
            self._metrics.lookup.observe(perf_counter() - began)
            record.personalized = "none"
            return known.summary
        exchange.watch_client()
        # Not wait_for: it would wait until the lookup has taken notice of being cancelled, however long that is.
        lookup = asyncio.ensure_future(self._summaries.summary_of(tenant, user_id))
        try:
            await _done_within(most - min(exchange.waited, most / 2), lookup)  # key and summary share the time
        finally:
            in_time = lookup.done()
            if not in_time:
                lookup.add_done_callback(_forget)
                lookup.cancel()
            self._metrics.lookup.observe(perf_counter() - began)
        if not in_time:
            self._not_personalised(record, "slow")
            return None
        error = asyncio.CancelledError() if lookup.cancelled() else lookup.exception()
        if error is not None:
            log_fault("a summary can't be read", error)
            self._not_personalised(record, "store")
            return None
        record.personalized = "none"
        return lookup.result()

    def _not_personalised(self, record: Record, reason: str) -> None:
        record.personalized, record.reason = "failed", reason
        self._metrics.failures.labels(reason).inc()

    def _name_user_upstream(self, headers: RequestHeaders, caller: Caller) -> None:
        for name, user_id in headers.named.items():
            if name in self._rules.hashed:
                headers.passed.append((name, self._pseudonyms.of(caller.tenant, user_id).encode()))

    async def _other_body(self, exchange: Exchange, caller: Caller) -> Body:
        """The body of a request that is passed on untouched, as it comes."""
        headers, most = exchange.headers, self._settings.max_upload_bytes
        self._name_user_upstream(headers, caller)
        names = {name for name, _ in exchange.scope["headers"]}
        if headers.length is not None and headers.length > most:
            raise too_long(most)
        if not headers.length and b"transfer-encoding" not in names:
            exchange.watch_client()
            return None if headers.length is None else b""
        if headers.length is not None:
            headers.passed.append((b"content-length", b"%d" % headers.length))
        return pass_on(exchange.receive, most, exchange.watch_client)

    def _with_upstream_key(self, exchange: Exchange) -> list[Raw]:
        settings, headers = self._settings, exchange.headers
        passed = headers.passed
        if settings.upstream_key is not None and not headers.own_upstream_key:
            key = settings.upstream_key.get_secret_value().encode()
            form = settings.upstream_auth
            if form == "x-api-key" or (form == "auto" and exchange.dialect == "anthropic"):
                passed.append((b"x-api-key", key))
            else:
                passed.append((b"authorization", b"Bearer " + key))
        return self._tracing.inject(passed) if self._tracing is not None else passed

    async def _call(self, exchange: Exchange, body: Body) -> None:
        """Send the request upstream and its answer back, piece by piece."""
        record, metrics = exchange.record, self._metrics
        query = exchange.scope["query_string"].decode("latin-1")
        sent = perf_counter()
        try:
            passed = self._with_upstream_key(exchange)
            if exchange.api is not None:  # other bodies may not be read yet
                exchange.watch_client()
            reply = await self._upstream.send(record.method, exchange.path, query, passed, body)
        except Refusal as refusal:
            if refusal.code.startswith("upstream_"):  # else the client's body was refused
                metrics.upstream_faults.labels(refusal.code).inc()
            raise
        finally:
            record.before_ms = (sent - exchange.began) * 1000
            metrics.before_upstream.labels(record.route).observe(sent - exchange.began)
        elapsed = perf_counter() - sent
        try:
            headers = answer_headers(reply.headers)
            if reply.status in (204, 304):  # the length of what is not there (RFC 9110, 8.6) would count as its own
                headers = [header for header in headers if header[0] != b"content-length"]
            if record.personalized is not None:
                headers.append((b"x-popi-personalized", record.personalized.encode()))
                if record.version is not None:
                    headers.append((b"x-popi-summary-version", b"%d" % record.version))
            await exchange.start(reply.status, headers)
            tap, more = exchange.tap if reply.status == 200 else None, True
            while more:
                piece, more = await reply.read()
                await exchange.send({"type": "http.response.body", "body": piece, "more_body": more})
                if tap is not None:
                    tap.feed(piece)
            if tap is not None:
                tap.done(_encoding(reply.headers))
        except HttpFault:
            # The answer stays unfinished, and the server closes the connection: the client sees what we saw.
            record.reason = "upstream_cut"
            metrics.upstream_faults.labels("cut").inc()
        finally:
            reply.close()
            record.upstream_ms = elapsed * 1000
            metrics.upstream.labels(record.route).observe(elapsed)

    async def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        record = exchange.record
        record.reason = refusal.code
        self._metrics.refusals.labels(refusal.code).inc()
        if exchange.started:
            return  # too late for another status; the connection is closed
        headers, body = answer(refusal, exchange.dialect)
        if record.personalized is not None:
            headers.append((b"x-popi-personalized", record.personalized.encode()))
        await exchange.start(refusal.status, headers)
        await exchange.send({"type": "http.response.body", "body": body})

    def _client_gone(self, record: Record) -> None:
        record.status = record.status or CLIENT_GONE
        record.reason = "client_gone"
        self._metrics.clients_gone.inc()


def _in_tenant(caller: Caller, tenant: str | None) -> Caller:
    """The caller, in the tenant that an admin may name."""
    if tenant is None or tenant == caller.tenant:
        return caller
    if caller.scope != "admin":
        raise Refusal(403, "not_allowed", "this key belongs to another tenant than x-popi-tenant names")
    return replace(caller, tenant=tenant)


def _encoding(headers: list[Raw]) -> str:
    """What an answer is packed in."""
    values = [value for name, value in headers if name.lower() == b"content-encoding"]
    return values[0].decode("latin-1").strip().lower() if values else ""


def _refused(error: AuthError) -> Refusal:
    code = {401: "not_authenticated", 403: "not_allowed"}.get(error.status, "keys_unavailable")
    status = error.status if error.status in (401, 403) else 503
    return Refusal(status, code, str(error), retry_after=1 if status == 503 else None)


def _forget(lookup: "asyncio.Future[StoredSummary | None]") -> None:
    """Take notice of how a lookup ended that nobody waits for any more."""
    if not lookup.cancelled():
        lookup.exception()


async def _done_within(seconds: float, lookup: "asyncio.Future[StoredSummary | None]") -> None:
    """Wait for a lookup, no longer than that. What `asyncio.wait` does, for one future and at half the price."""
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(seconds, wake)
    lookup.add_done_callback(wake)
    try:
        await waiter
    finally:
        timer.cancel()
        lookup.remove_done_callback(wake)
