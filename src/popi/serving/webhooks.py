"""Tells endpoints what happened to users: summary changed, user erased (`[[webhooks]]`).

What is sent follows the Standard Webhooks specification (https://www.standardwebhooks.com): its headers, its signature,
its form of a secret. It has ids, a version and a time, and no text of a user's. Each endpoint is served by itself, from
the outbox of the store (store.outbox): at least once, a user's events one after the other. What an endpoint does not
take is tried again, later and later, until its hours are over.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge
from sqlalchemy import Connection
from yarl import URL

import popi
from popi.config.http import HttpConfig
from popi.errors import ConfigError, StoreError
from popi.models.remote.http import HttpClient, HttpFault, HttpSession
from popi.models.remote.retries import Retries, retry_after
from popi.profiles.answers import moment
from popi.serving.proxy.logs import log_fault
from popi.serving.settings import WebhookSettings
from popi.serving.store import erasure, outbox
from popi.serving.store.database import Database, Query
from popi.serving.store.outbox import Pending

log = logging.getLogger("popi.gateway.webhooks")

P = ParamSpec("P")
T = TypeVar("T")

ANSWER_SECONDS = 15.0
"""How long an endpoint may take; it should answer first, and work then."""
LEASE_SECONDS = 45.0
"""After this, what a dead process was telling is told by another."""
AT_ONCE = 16
"""Requests to an endpoint at once, by each process."""
IDLE_SECONDS = 1.0
"""Between two looks at the outbox."""
REGISTER_SECONDS = 20.0
"""Between two times that the store is told of an endpoint, and asked how much waits for it."""
BACK_OFF, LONGEST_BACK_OFF = 2.0, 3600.0
"""Seconds before an event is tried again; doubled with each further failure."""
PAUSE, LONGEST_PAUSE = 0.1, 60.0
"""Seconds that an endpoint is left alone after a failure; doubled with each further one, until it takes something."""
MANY = 10**6
PREFIX, LEAST_BYTES, MOST_BYTES = "whsec_", 24, 64


def secrets_of(endpoint: WebhookSettings) -> list[bytes]:
    """The secrets that sign an endpoint's events.

    Raises:
        ConfigError: the variable is not set, or holds no secret.
    """
    wanted = f"the webhook {endpoint.name!r} is signed with the secret in {endpoint.secret_env}"
    found = []
    for text in os.environ.get(endpoint.secret_env, "").split():
        try:
            secret = base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except binascii.Error:
            secret = b""
        if not text.startswith(PREFIX) or not LEAST_BYTES <= len(secret) <= MOST_BYTES:
            words = f"{PREFIX} and {LEAST_BYTES} to {MOST_BYTES} bytes in base64"
            raise ConfigError(f"{wanted}, which must be {words}: echo {PREFIX}$(openssl rand -base64 32)")
        found.append(secret)
    if not found:
        raise ConfigError(f"{wanted}, which is not set; make one: echo {PREFIX}$(openssl rand -base64 32)")
    return found


def signature(secrets: Sequence[bytes], event_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: HMAC-SHA256 of `id.timestamp.body` with each secret."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    each = (hmac.digest(secret, signed, hashlib.sha256) for secret in secrets)
    return " ".join("v1," + base64.b64encode(one).decode() for one in each)


def payload(pending: Pending) -> bytes:
    """What is sent of an event."""
    data: dict[str, Any] = {"tenant": pending.tenant, "user_id": pending.user_id}
    data |= {"version": pending.version} if pending.version is not None else {"merged_into": pending.merged_into}
    whole = {"type": pending.event, "timestamp": moment(pending.happened_at).isoformat(), "data": data}
    return json.dumps(whole, ensure_ascii=False).encode()


class Deliverer:
    """Tells all endpoints, in a thread of its own.

    Args:
        database: the store.
        endpoints: whom to tell of what.
        http: how they are reached.

    Raises:
        ConfigError: a secret is missing, or none; or `http` can't be used.
    """

    def __init__(self, database: Database, endpoints: Sequence[WebhookSettings], http: HttpConfig) -> None:
        self._database = database
        self._endpoints = [(one, secrets_of(one)) for one in endpoints]
        patience = {"first_byte_s": ANSWER_SECONDS, "silence_s": ANSWER_SECONDS}
        self._client = HttpClient(http.model_copy(update=patience))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="popi-webhooks", daemon=True)
        self._stop: Callable[[], object] = lambda: None
        self._stopped = threading.Event()
        self.registry = CollectorRegistry()
        labels = ("endpoint", "outcome")
        about = "Events sent to an endpoint, by what became of it"
        self._told = Counter("popi_webhooks", about, labels, registry=self.registry)
        about = "Events that an endpoint is still to be told"
        self._waiting = Gauge("popi_webhook_events_waiting", about, ("endpoint",), registry=self.registry)

    def start(self) -> None:
        """Have what happens from now on noted for the endpoints, and begin to tell them.

        Raises:
            StoreError: the database failed.
        """
        for endpoint, _ in self._endpoints:
            self._database.write(self._register, endpoint)
        self._thread.start()

    def stop(self) -> None:
        """End; what is under way is told again, by whoever comes next."""
        self._stopped.set()
        self._stop()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _register(self, connection: Connection, endpoint: WebhookSettings) -> None:
        now = self._database.now(connection)
        outbox.register(connection, endpoint.name, endpoint.events, endpoint.hours * 3600, now)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._client.session() as session:
            every = asyncio.gather(*(self._serve(session, *one) for one in self._endpoints))

            def stop() -> None:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(every.cancel)

            self._stop = stop
            if self._stopped.is_set():
                every.cancel()
            with suppress(asyncio.CancelledError):
                await every

    async def _serve(self, session: HttpSession, endpoint: WebhookSettings, secrets: Sequence[bytes]) -> None:
        """Tell one endpoint, on and on. Where it takes nothing, it is left alone for a while, longer each time."""
        failures, registered = 0, float("-inf")
        under_way: set[asyncio.Task[bool]] = set()
        try:
            while True:
                try:
                    if time.monotonic() - registered > REGISTER_SECONDS:
                        registered = time.monotonic()
                        await self._write(self._register, endpoint)
                        self._waiting.labels(endpoint.name).set(await self._read(outbox.count_pending, endpoint.name))
                    for pending in await self._claim(endpoint, AT_ONCE - len(under_way)):
                        telling = self._deliver(session, endpoint, secrets, pending)
                        under_way.add(asyncio.create_task(telling))
                except StoreError as failed:
                    log.error("the store failed", extra={"fields": {"error": str(failed)}})
                except Exception as fault:  # of ours: it ends no webhook
                    log_fault("the webhooks failed", fault)
                if not under_way:
                    await asyncio.sleep(IDLE_SECONDS)
                    continue
                done, under_way = await asyncio.wait(
                    under_way, timeout=IDLE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                before = failures
                for one in done:
                    if (error := one.exception()) is not None:
                        log_fault("the webhooks failed", error)
                    failures = 0 if error is None and one.result() else failures + 1
                if failures > before:
                    await asyncio.sleep(min(LONGEST_PAUSE, PAUSE * 2.0 ** min(failures, 20)))
        finally:
            for one in under_way:
                one.cancel()

    async def _claim(self, endpoint: WebhookSettings, most: int) -> list[Pending]:
        database, name = self._database, endpoint.name

        def claim(connection: Connection) -> list[Pending]:
            return outbox.claim(connection, name, database.now(connection), LEASE_SECONDS, most)

        def due(connection: Connection) -> bool:
            return outbox.any_due(connection, name, database.now(connection))

        if not most or not await self._read(due):
            return []
        return await self._write(claim)

    async def _deliver(
        self, session: HttpSession, endpoint: WebhookSettings, secrets: Sequence[bytes], pending: Pending
    ) -> bool:
        """Tell one event; whether the endpoint took it."""
        began = time.monotonic()
        status, error, asked = await self._sent(session, endpoint.url, secrets, pending)
        outcome = "delivered" if status is not None and 200 <= status < 300 else "gone" if status == 410 else "failed"
        try:
            if outcome == "failed":
                wait = Retries(most=MANY, base=BACK_OFF, longest=LONGEST_BACK_OFF).wait(pending.attempts, asked)
                await self._write(self._again, pending, LONGEST_BACK_OFF if wait is None else wait)
            else:
                await self._write(self._done, pending)
        except StoreError as fault:  # the lease ends by itself, and the event is told again
            log.error("the store failed", extra={"fields": {"error": str(fault)}})
        self._told.labels(endpoint.name, outcome).inc()
        fields: dict[str, object] = {"endpoint": endpoint.name, "event": pending.event, "event_id": pending.event_id}
        fields |= {"tenant": pending.tenant, "attempt": pending.attempts + 1, "outcome": outcome}
        fields |= {"status": status, "error": error, "total_ms": (time.monotonic() - began) * 1e3}
        log.info("webhook", extra={"fields": fields})
        return outcome != "failed"

    async def _sent(
        self, session: HttpSession, url: str, secrets: Sequence[bytes], pending: Pending
    ) -> tuple[int | None, str | None, float | None]:
        """The status of the answer, or why there is none; and how many seconds the endpoint asks to wait."""
        body, stamp = payload(pending), int(time.time())
        headers = [
            ("content-type", "application/json"),
            ("user-agent", f"popi/{popi.__version__}"),
            ("webhook-id", pending.event_id),
            ("webhook-timestamp", str(stamp)),
            ("webhook-signature", signature(secrets, pending.event_id, stamp, body)),
        ]
        try:
            async with asyncio.timeout(2 * ANSWER_SECONDS):
                answer = await session.send("POST", URL(url), headers, body)
        except HttpFault as fault:
            return None, fault.kind, None
        except TimeoutError:
            return None, "timeout", None
        answer.close()
        return answer.status, None, retry_after(answer.named)

    def _done(self, connection: Connection, pending: Pending) -> None:
        if outbox.finish(connection, pending):
            erasure.scrub_later(connection, self._database.now(connection))

    def _again(self, connection: Connection, pending: Pending, wait: float) -> None:
        outbox.postpone(connection, pending, self._database.now(connection) + wait)

    async def _read(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(lambda: self._database.read(query, *args, **kwargs))

    async def _write(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(lambda: self._database.write(query, *args, **kwargs))
