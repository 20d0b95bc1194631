"""The gateway as one ASGI application: the profile API, the pages, and the proxy for everything under `/v1/`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import SecretStr
from sqlalchemy import Connection
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from popi.errors import StoreError
from popi.models.remote.key import key_in
from popi.profiles.answers import InferenceHealth
from popi.serving.api.app import ProfileApi
from popi.serving.api.service import Profiles
from popi.serving.capture.injected import Injected
from popi.serving.capture.recorder import Recorder
from popi.serving.cors import Cors
from popi.serving.follower import Follower
from popi.serving.keys import KeyRing
from popi.serving.pages.app import Pages
from popi.serving.proxy.limits import Limits
from popi.serving.proxy.logs import log_fault
from popi.serving.proxy.routes import proxy_routes
from popi.serving.proxy.settings import ProxySettings
from popi.serving.settings import AuditSettings, GatewaySettings
from popi.serving.store import jobs
from popi.serving.store.changes import Change
from popi.serving.store.database import Database
from popi.serving.store.expiry import Leaps
from popi.serving.store.marks import draw
from popi.serving.store.settings import id_secret
from popi.serving.store.threads import Store
from popi.serving.summaries import SummaryCache
from popi.serving.throttle import CLIENT, Throttle
from popi.serving.webhooks import Deliverer
from popi.serving.worker.renewal import Worker

log = logging.getLogger("popi.gateway")

CHORES_SECONDS = 10.0
"""Interval of housekeeping in the store, and of counting pending renewals."""


class Gateway:
    """The application.

    Attributes:
        ending: the process is about to shut down, as `/readyz` reports.

    Args:
        database: the store, open.
        settings: all settings.
        worker: renews summaries in this process; None if a separate process does, or none at all.
        admin_key: see KeyRing.

    Raises:
        StoreError: the database failed.
    """

    def __init__(
        self, database: Database, settings: GatewaySettings, worker: Worker | None = None, admin_key: str | None = None
    ) -> None:
        self.ending = False
        draw(database)
        self.store = Store(database)
        throttle = Throttle(settings.server)
        self.keys = KeyRing(self.store, admin_key, throttle)
        self.follower = Follower(self.store, self._apply, self._drop_all)
        self.summaries = SummaryCache(self.store, is_current=self.follower.is_current)
        injected = Injected(settings.proxy.block)
        self.profiles = Profiles(
            self.store,
            settings.debounce,
            self.summaries.forget,
            self._erased,
            injected,
            settings.profiles,
            self.follower.everyone,
        )
        self._worker, self._audit = worker, settings.audit
        proxy = _with_secret(settings.proxy, database)
        limits = Limits.from_settings(proxy)
        self.pages = Pages(self.store, self.profiles, self.keys, throttle, settings)
        self.recorder = Recorder(self.store, settings.capture, injected)
        profile_api = ProfileApi(
            self.profiles,
            self.keys,
            limits,
            self.pages.link,
            proxy.log_requests,
            self._inference,
            lambda: self.ending,
            settings.audit,
        )
        self._proxy = proxy_routes(proxy, self.keys, self.summaries, limits, self.recorder, settings.http)
        self._jobs: dict[str, int] = {}
        self._proxy.metrics.registry.register(_StoreMetrics(self._jobs, self.summaries))
        if worker is not None:
            self._proxy.metrics.registry.register(worker.metrics.registry)
        self._webhooks = Deliverer(database, settings.webhooks, settings.http) if settings.webhooks else None
        if self._webhooks is not None:
            self._proxy.metrics.registry.register(self._webhooks.registry)
        self._router = Router(
            routes=self._proxy.routes, redirect_slashes=False, default=profile_api, lifespan=self._lifespan
        )
        origins = settings.server.cors_origins
        self._models: ASGIApp = Cors(self._proxy.gateway, origins) if origins else self._proxy.gateway
        self._others: ASGIApp = Cors(self._router, origins) if origins else self._router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            CLIENT.set(scope["client"][0] if scope.get("client") else "")
            path: str = scope["path"]
            if path.startswith("/v1/") or path == "/v1":
                await self._models(scope, receive, send)
            elif self.pages.has(path):
                await self.pages(scope, receive, send)
            else:
                await self._others(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._router(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        chores = asyncio.create_task(self._chores(self._audit))
        await self.follower.start()
        if self._worker is not None:
            loop, forget = asyncio.get_running_loop(), self.summaries.forget
            self._worker.changed = lambda tenant, user_id: _forget_soon(loop, forget, tenant, user_id)
            self._worker.start()
        if self._webhooks is not None:
            await asyncio.to_thread(self._webhooks.start)
        try:
            async with self._proxy.lifespan(app):
                yield
        finally:
            chores.cancel()
            if self._worker is not None:
                await asyncio.to_thread(self._worker.stop)
            if self._webhooks is not None:
                await asyncio.to_thread(self._webhooks.stop)
            await self.recorder.settled()
            await self.profiles.reads.settled()
            await self.follower.stop()
            await asyncio.to_thread(self.store.close)

    def _inference(self) -> InferenceHealth | None:
        provider = self._worker.provider if self._worker is not None else None
        return None if provider is None else InferenceHealth(state=provider.state, reason=provider.reason or None)

    def _erased(self, tenant: str, user_id: str) -> None:
        self.keys.forget(tenant, user_id)
        self.profiles.reads.forget(tenant, user_id)
        self._proxy.gateway.forget()

    def _apply(self, news: Collection[Change]) -> None:
        """Drop from memory what other processes have changed."""
        of: dict[str, set[str]] = {"user": set(), "erased": set(), "key": set()}
        for change in news:
            of.setdefault(change.kind, set()).add(change.subject)
        self.summaries.forget_hashed(of["user"] | of["erased"])
        if of["key"]:
            self.keys.revoked(*of["key"])
        if of["erased"]:
            self.profiles.reads.forget_hashed(of["erased"])
            self._proxy.gateway.forget()

    def _drop_all(self) -> None:
        self.summaries.forget_all()
        self.keys.forget_all()
        self._proxy.gateway.forget()

    async def _chores(self, settings: AuditSettings) -> None:
        database, leaps = self.store.database, Leaps()

        def count(connection: Connection) -> dict[str, int]:
            return jobs.counts(connection, database.now(connection))

        while True:
            try:
                self.summaries.drop_old()
                self._proxy.gateway.forget()  # another process may have erased users that it has cached
                self._jobs.update(await self.store.read(count))
                await self.profiles.correct_times()
                if not leaps.waiting(await self.store.read(database.now)):
                    await self.profiles.expire()
                    await self.profiles.expire_audit(settings.retention_days)
                await self.profiles.scrub_if_time()
            except StoreError as error:
                log.error("the store failed", extra={"fields": {"error": str(error)}})
            except Exception as error:  # an error must not end the chores
                log_fault("the chores failed", error)
            await asyncio.sleep(CHORES_SECONDS)


def _with_secret(proxy: ProxySettings, database: Database) -> ProxySettings:
    """The settings with the secret for hashed ids, if needed: their own, or else the store's."""
    if proxy.id_secret is not None or proxy.ids_upstream != "hashed":
        return proxy
    if proxy.id_secret_env is not None:
        return proxy.model_copy(update={"id_secret": key_in(proxy.id_secret_env)})
    return proxy.model_copy(update={"id_secret": SecretStr(id_secret(database))})


def _forget_soon(
    loop: asyncio.AbstractEventLoop, forget: Callable[[str, str], None], tenant: str, user_id: str
) -> None:
    with suppress(RuntimeError):  # the loop has ended, and the cache with it
        loop.call_soon_threadsafe(forget, tenant, user_id)


class _StoreMetrics(Collector):
    """Metrics of the store: pending renewals, and uses of outdated summaries."""

    def __init__(self, waiting: dict[str, int], summaries: SummaryCache) -> None:
        self._waiting, self._summaries = waiting, summaries

    def collect(self) -> list[Metric]:
        gauge = GaugeMetricFamily(
            "popi_renewal_jobs", "Stale summaries, by the state of their renewal", labels=["state"]
        )
        for state, number in self._waiting.items():
            gauge.add_metric([state], number)
        about = "Requests personalised with a cached summary because the store was slow or failed"
        return [gauge, CounterMetricFamily("popi_stale_summaries", about, self._summaries.stale_uses)]
