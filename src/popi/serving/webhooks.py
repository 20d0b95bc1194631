"""Deliver webhooks when a summary changes or a user is erased (`[[webhooks]]`).

Headers, signatures and secrets follow the Standard Webhooks specification (https://www.standardwebhooks.com). Payloads
hold ids, a version and a time, but no text of a user. Each endpoint is served independently, from the store's outbox
(store.outbox): at least once, and in order per user. A failed delivery is retried with growing delays until the
endpoint's time limit.
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
"""Timeout of a delivery; endpoints should respond first and do their work after that."""
LEASE_SECONDS = 45.0
"""After this, another process takes over a dead process's deliveries."""
MAX_CONCURRENT = 16
"""Maximum concurrent requests per endpoint and process."""
IDLE_SECONDS = 1.0
"""Interval of polling the outbox."""
REGISTER_SECONDS = 20.0
"""Interval of registering an endpoint in the store and counting its pending events."""
BACK_OFF, MAX_BACK_OFF = 2.0, 3600.0
"""Seconds before a failed event is retried; doubled with each further failure."""
PAUSE, MAX_PAUSE = 0.1, 60.0
"""Seconds to pause deliveries to an endpoint after a failure; doubled with each further one, until one succeeds."""
UNLIMITED = 10**6
PREFIX, MIN_BYTES, MAX_BYTES = "whsec_", 24, 64


def secrets_of(endpoint: WebhookSettings) -> list[bytes]:
    """The secrets for signing an endpoint's events.

    Raises:
        ConfigError: the variable is not set, or its value is not a secret.
    """
    purpose = f"the webhook {endpoint.name!r} is signed with the secret in {endpoint.secret_env}"
    secrets = []
    for text in os.environ.get(endpoint.secret_env, "").split():
        try:
            secret = base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except binascii.Error:
            secret = b""
        if not text.startswith(PREFIX) or not MIN_BYTES <= len(secret) <= MAX_BYTES:
            form = f"{PREFIX} and {MIN_BYTES} to {MAX_BYTES} bytes in base64"
            raise ConfigError(f"{purpose}, which must be {form}: echo {PREFIX}$(openssl rand -base64 32)")
        secrets.append(secret)
    if not secrets:
        raise ConfigError(f"{purpose}, which is not set; create one: echo {PREFIX}$(openssl rand -base64 32)")
    return secrets


def signature(secrets: Sequence[bytes], event_id: str, timestamp: int, body: bytes) -> str:
    """The value of the header `webhook-signature`: the HMAC-SHA256 of `id.timestamp.body` with each secret."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    each = (hmac.digest(secret, signed, hashlib.sha256) for secret in secrets)
    return " ".join("v1," + base64.b64encode(one).decode() for one in each)


def payload(pending: Pending) -> bytes:
    """The body of an event's request."""
    data: dict[str, Any] = {"tenant": pending.tenant, "user_id": pending.user_id}
    data |= {"version": pending.version} if pending.version is not None else {"merged_into": pending.merged_into}
    event = {"type": pending.event, "timestamp": moment(pending.happened_at).isoformat(), "data": data}
    return json.dumps(event, ensure_ascii=False).encode()


class Deliverer:
    """Delivers events to all endpoints, in a background thread.

    Args:
        database: the store.
        endpoints: the endpoints and their events.
        http: settings for outgoing connections.

    Raises:
        ConfigError: a secret is missing or invalid, or `http` can't be used.
    """

    def __init__(self, database: Database, endpoints: Sequence[WebhookSettings], http: HttpConfig) -> None:
        self._database = database
        self._endpoints = [(one, secrets_of(one)) for one in endpoints]
        timeouts = {"first_byte_timeout_s": ANSWER_SECONDS, "read_timeout_s": ANSWER_SECONDS}
        self._client = HttpClient(http.model_copy(update=timeouts))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="popi-webhooks", daemon=True)
        self._stop: Callable[[], object] = lambda: None
        self._stopped = threading.Event()
        self.registry = CollectorRegistry()
        labels = ("endpoint", "outcome")
        about = "Events sent to an endpoint, by outcome"
        self._sent_events = Counter("popi_webhooks", about, labels, registry=self.registry)
        about = "Events waiting to be sent to an endpoint"
        self._waiting = Gauge("popi_webhook_events_waiting", about, ("endpoint",), registry=self.registry)

    def start(self) -> None:
        """Record events for the endpoints from now on, and start delivering them.

        Raises:
            StoreError: the database failed.
        """
        for endpoint, _ in self._endpoints:
            self._database.write(self._register, endpoint)
        self._thread.start()

    def stop(self) -> None:
        """Stop; deliveries in progress will be repeated by another process or the next start."""
        self._stopped.set()
        self._stop()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _register(self, connection: Connection, endpoint: WebhookSettings) -> None:
        now = self._database.now(connection)
        outbox.register(connection, endpoint.name, endpoint.events, endpoint.retry_hours * 3600, now)
        outbox.correct(connection, endpoint.name, now, LEASE_SECONDS, MAX_BACK_OFF)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._client.session() as session:
            all_endpoints = asyncio.gather(*(self._serve(session, *one) for one in self._endpoints))

            def stop() -> None:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(all_endpoints.cancel)

            self._stop = stop
            if self._stopped.is_set():
                all_endpoints.cancel()
            with suppress(asyncio.CancelledError):
                await all_endpoints

    async def _serve(self, session: HttpSession, endpoint: WebhookSettings, secrets: Sequence[bytes]) -> None:
        """Deliver to one endpoint, in a loop. After failures, pause for increasing times."""
        failures, registered = 0, float("-inf")
        deliveries: set[asyncio.Task[bool]] = set()
        try:
            while True:
                try:
                    if time.monotonic() - registered > REGISTER_SECONDS:
                        registered = time.monotonic()
                        await self._write(self._register, endpoint)
                        self._waiting.labels(endpoint.name).set(await self._read(outbox.count_pending, endpoint.name))
                    for pending in await self._claim(endpoint, MAX_CONCURRENT - len(deliveries)):
                        delivery = self._deliver(session, endpoint, secrets, pending)
                        deliveries.add(asyncio.create_task(delivery))
                except StoreError as failed:
                    log.error("the store failed", extra={"fields": {"error": str(failed)}})
                except Exception as fault:  # an error of ours must not end the loop
                    log_fault("the webhooks failed", fault)
                if not deliveries:
                    await asyncio.sleep(IDLE_SECONDS)
                    continue
                done, deliveries = await asyncio.wait(
                    deliveries, timeout=IDLE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                before = failures
                for one in done:
                    if (error := one.exception()) is not None:
                        log_fault("the webhooks failed", error)
                    failures = 0 if error is None and one.result() else failures + 1
                if failures > before:
                    await asyncio.sleep(min(MAX_PAUSE, PAUSE * 2.0 ** min(failures, 20)))
        finally:
            for one in deliveries:
                one.cancel()

    async def _claim(self, endpoint: WebhookSettings, limit: int) -> list[Pending]:
        database, name = self._database, endpoint.name

        def claim(connection: Connection) -> list[Pending]:
            return outbox.claim(connection, name, database.now(connection), LEASE_SECONDS, limit)

        def due(connection: Connection) -> bool:
            return outbox.any_due(connection, name, database.now(connection))

        if not limit or not await self._read(due):
            return []
        return await self._write(claim)

    async def _deliver(
        self, session: HttpSession, endpoint: WebhookSettings, secrets: Sequence[bytes], pending: Pending
    ) -> bool:
        """Deliver one event. Returns whether the endpoint accepted it."""
        began = time.monotonic()
        status, error, requested_wait = await self._send(session, endpoint.url, secrets, pending)
        outcome = "delivered" if status is not None and 200 <= status < 300 else "gone" if status == 410 else "failed"
        try:
            if outcome == "failed":
                wait = Retries(limit=UNLIMITED, base_s=BACK_OFF, max_wait_s=MAX_BACK_OFF).wait(
                    pending.attempts, requested_wait
                )
                await self._write(self._postpone, pending, MAX_BACK_OFF if wait is None else wait)
            else:
                await self._write(self._finish, pending)
        except StoreError as fault:  # the lease expires, and the event is delivered again
            log.error("the store failed", extra={"fields": {"error": str(fault)}})
        self._sent_events.labels(endpoint.name, outcome).inc()
        fields: dict[str, object] = {"endpoint": endpoint.name, "event": pending.event, "event_id": pending.event_id}
        fields |= {"tenant": pending.tenant, "attempt": pending.attempts + 1, "outcome": outcome}
        fields |= {"status": status, "error": error, "total_ms": (time.monotonic() - began) * 1e3}
        log.info("webhook", extra={"fields": fields})
        return outcome != "failed"

    async def _send(
        self, session: HttpSession, url: str, secrets: Sequence[bytes], pending: Pending
    ) -> tuple[int | None, str | None, float | None]:
        """The response's status, or why there was no response; and the seconds that the endpoint asks to wait."""
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

    def _finish(self, connection: Connection, pending: Pending) -> None:
        if outbox.finish(connection, pending):
            erasure.scrub_later(connection, self._database.now(connection))

    def _postpone(self, connection: Connection, pending: Pending, wait: float) -> None:
        outbox.postpone(connection, pending, self._database.now(connection) + wait)

    async def _read(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(lambda: self._database.read(query, *args, **kwargs))

    async def _write(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(lambda: self._database.write(query, *args, **kwargs))
