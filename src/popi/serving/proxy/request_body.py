"""A request's body on its way upstream: with the user's summary, and without user ids."""

import asyncio
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, cast

from popi.models.remote.http import Body
from popi.serving.interfaces import Caller, Recorder, StoredSummary, Summaries
from popi.serving.proxy.block import Blocks
from popi.serving.proxy.body import Bodies, Hold, may_be_json, peek, read_whole, stream, too_long
from popi.serving.proxy.exchange import Exchange
from popi.serving.proxy.headers import HeaderRules, RequestHeaders
from popi.serving.proxy.identity import user_of
from popi.serving.proxy.ids import Pseudonyms, replace_ids, user_ids
from popi.serving.proxy.inject import Api, inject
from popi.serving.proxy.jwt_claims import Tokens
from popi.serving.proxy.limits import Limits
from popi.serving.proxy.logs import Record, log_fault
from popi.serving.proxy.metrics import Metrics
from popi.serving.proxy.models import model_in
from popi.serving.proxy.settings import ProxySettings
from popi.serving.proxy.strict_json import parse, serialise
from popi.serving.proxy.upstream import Upstreams

TOKEN_COUNT_PATHS = ("/v1/responses/input_tokens", "/v1/messages/count_tokens")
"""Paths that only count a request's tokens, including the block's: there is no answer to record."""


class RequestBodies:
    """Reads requests' bodies and changes them for the upstream.

    Args:
        settings: see ProxySettings.
        summaries: looks up users' summaries.
        upstreams: the model APIs.
        tokens: verifies the tokens that name users; None ignores tokens.
        pseudonyms: replaces user ids.
        metrics: the proxy's metrics.
        limits: limits per key.
        recorder: records answers for tenants that opted in to capture.
    """

    def __init__(
        self,
        settings: ProxySettings,
        summaries: Summaries,
        upstreams: Upstreams,
        tokens: Tokens | None,
        pseudonyms: Pseudonyms,
        metrics: Metrics,
        limits: Limits,
        recorder: Recorder | None,
    ) -> None:
        self._settings, self._summaries, self._upstreams = settings, summaries, upstreams
        self._tokens, self._pseudonyms, self._metrics = tokens, pseudonyms, metrics
        self._limits, self._recorder = limits, recorder
        self.rules = HeaderRules(settings)
        self._bodies, self._blocks = Bodies(settings), Blocks(settings.block)

    def forget(self) -> None:
        """Drop users' summaries and ids from memory; they are recomputed when needed."""
        self._blocks.forget()
        self._pseudonyms.forget()

    async def read(self, exchange: Exchange, caller: Caller) -> Body:
        """The body to send upstream. Chooses the request's upstream, which may depend on it.

        Raises:
            Refusal: the body is not allowed, or no upstream serves the request.
            ClientGone: the client hung up.
        """
        if exchange.api is None:
            return await self._other_body(exchange, caller)
        return await self._personalised_body(exchange, exchange.api, caller)

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
            if name in self.rules.hashed:
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


def _forget(lookup: "asyncio.Future[StoredSummary | None]") -> None:
    """Retrieve the exception of an abandoned lookup, so that asyncio does not report it."""
    if not lookup.cancelled():
        lookup.exception()
