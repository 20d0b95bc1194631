"""Keys: create them, and check them within the time that a chat can spare."""

import asyncio
import hmac
import logging
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from popi.errors import AuthError, ConfigError, DataError, StoreError
from popi.profiles.fields import Scope
from popi.serving.interfaces import Caller
from popi.serving.settings import ServerSettings
from popi.serving.store import keys
from popi.serving.store.database import Database
from popi.serving.store.keys import KeyRecord
from popi.serving.store.threads import Store
from popi.serving.throttle import Throttle

log = logging.getLogger("popi.gateway.keys")

ADMIN_VARIABLE = "POPI_ADMIN_KEY"
DEFAULT_TENANT = "default"
ADMIN = Caller("env", "admin", DEFAULT_TENANT)
"""The caller of the key in POPI_ADMIN_KEY."""
MIN_ADMIN_KEY_CHARS = 16
_KEY = re.compile(r"popi_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

FRESH_SECONDS = 1.0
"""How long a checked key is used without checking it again."""
PATIENCE_SECONDS = 0.025
"""How long a request waits to look up a key that was valid before: a chat can spare 50 ms for all of popi's work."""
AUTH_SECONDS = 5.0
"""How long a request waits to look up any other key."""
GRACE_SECONDS = 300.0
"""How long a valid key stays valid while the store is unavailable."""
CACHE_SIZE = 100_000
"""Maximum number of keys to cache."""

UNKNOWN = "this key is unknown or revoked; an admin can create one with `popi keys create` or POST /keys"


def checked_tenant(name: str) -> str:
    """Check the name of a tenant.

    Raises:
        ConfigError: it is not valid.
    """
    if not _TENANT.fullmatch(name):
        raise ConfigError(
            f"a tenant's name has 1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit; "
            f"got {name!r}"
        )
    return name


def digest(key: str) -> str:
    """The hash that the store holds of a key."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key(scope: Scope, tenant: str, user_id: str | None, now: float) -> tuple[str, KeyRecord]:
    """A new key: its text, which can't be recovered later, and the record to store."""
    key_id = secrets.token_hex(6)
    key = f"popi_{key_id}_{secrets.token_urlsafe(32)}"
    return key, KeyRecord(key_id, digest(key), scope, tenant, user_id, now)


def create(
    database: Database, scope: Scope, tenant: str = DEFAULT_TENANT, user_id: str | None = None
) -> tuple[str, KeyRecord, bool]:
    """Create and store a key. Returns its text, its record, and whether its tenant is new.

    Raises:
        DataError: a user key without a user id or another key with one; or the user id is not valid.
        ConfigError: the tenant's name is not valid.
    """
    from popi.profiles.user_id import normal_user_id

    checked_tenant(tenant)
    if (scope == "user") != (user_id is not None):
        raise DataError("a key with scope `user` needs a user (--user), and other keys can't have one")
    if user_id is not None:
        user_id = normal_user_id(user_id)
    key, record = new_key(scope, tenant, user_id, time.time())
    return key, record, database.write(keys.add, record)


def log_revoked(record: KeyRecord) -> None:
    """Log that a key is revoked: after restoring a backup, `popi replay` revokes it again from this line."""
    log.info("key revoked", extra={"fields": {"key_id": record.key_id, "at": record.revoked_at}})


def first_admin_key(database: Database) -> str | None:
    """At the first start, create an admin key, unless POPI_ADMIN_KEY holds one or there is one already."""
    if os.environ.get(ADMIN_VARIABLE):
        database.write(keys.ensure_tenant, DEFAULT_TENANT, time.time())
        return None
    key, record = new_key("admin", DEFAULT_TENANT, None, time.time())
    return key if database.write(keys.add_first_admin, record) else None


@dataclass
class _Cached:
    """A key that was valid at `checked`. `asked`: when the store was last queried, even in vain. Monotonic seconds."""

    caller: Caller
    checked: float
    asked: float


class KeyRing:
    """Checks keys against the store (interfaces.Keys).

    A key that was valid a moment ago is accepted without a lookup. While the store is unavailable, recently valid keys
    stay valid for a while, so that chats continue; all others are refused.

    Args:
        store: where keys are stored.
        admin_key: an admin key of the tenant `default` that is never stored; by default from POPI_ADMIN_KEY.
        throttle: slows down clients that try wrong keys.
        clock: monotonic seconds.

    Raises:
        ConfigError: the admin key is too short.
    """

    def __init__(
        self,
        store: Store,
        admin_key: str | None = None,
        throttle: Throttle | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        admin_key = os.environ.get(ADMIN_VARIABLE) if admin_key is None else admin_key
        if admin_key and len(admin_key) < MIN_ADMIN_KEY_CHARS:
            raise ConfigError(f"{ADMIN_VARIABLE} must have at least {MIN_ADMIN_KEY_CHARS} characters")
        self._store, self._clock = store, clock
        self._throttle = throttle or Throttle(ServerSettings())
        self._admin = digest(admin_key) if admin_key else None
        self._cached: OrderedDict[str, _Cached] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[Caller | None]] = {}
        self._generation = 0

    def cached(self, key: str | None) -> Caller | None:
        """The caller, if known without I/O; None means that `authenticate` has to be called.

        Refreshes a key in use ahead of time, so that no request waits for it.
        """
        if not key:
            return None
        hashed, now = digest(key), self._clock()
        caller = self._fresh(hashed, now)
        cached = self._cached.get(hashed)
        if caller is not None and cached is not None and 2 * (now - cached.asked) >= FRESH_SECONDS:
            self._look_up(caller.key_id, hashed)
        return caller

    def _fresh(self, hashed: str, now: float) -> Caller | None:
        if self._admin is not None and hmac.compare_digest(hashed, self._admin):
            return ADMIN
        cached = self._cached.get(hashed)
        if cached is not None and now - cached.asked < FRESH_SECONDS and now - cached.checked < GRACE_SECONDS:
            return cached.caller
        return None

    async def authenticate(self, key: str | None) -> Caller:
        """The caller that a key belongs to.

        Raises:
            AuthError: the key is missing, unknown or revoked (401), it can't be checked right now (503), or this client
                has sent too many unknown keys (429).
        """
        if not key:
            raise AuthError("no key was sent; send one as `Authorization: Bearer popi_…`")
        hashed, now = digest(key), self._clock()
        if (caller := self._fresh(hashed, now)) is not None:
            return caller
        caller = await self._throttle.attempt(hashed, partial(self._checked, key, hashed, now))
        if caller is None:
            raise AuthError(UNKNOWN)
        return caller

    async def _checked(self, key: str, hashed: str, now: float) -> Caller | None:
        cached = self._cached.get(hashed)
        match = _KEY.fullmatch(key)
        if match is None:
            return None
        if cached is not None:
            cached.asked = now
        try:
            task = self._look_up(match[1], hashed)
            return await asyncio.wait_for(
                asyncio.shield(task),
                PATIENCE_SECONDS if cached is not None and self._is_in_grace(cached, now) else AUTH_SECONDS,
            )
        except (StoreError, TimeoutError) as fault:
            # Not for unknown keys, which wait for each other, nor if this process rather than the store was busy.
            in_time = self._clock() - now < 1.2 * PATIENCE_SECONDS
            if isinstance(fault, TimeoutError) and cached is not None and in_time:
                self._store.report_timeout()
            if cached is not None and self._is_in_grace(cached, now):
                return cached.caller
            log.warning("can't check a key: the store does not respond")
            raise AuthError(
                "keys can't be checked right now: the store does not respond; try again", status=503
            ) from None

    def _is_in_grace(self, cached: _Cached, now: float) -> bool:
        return now - cached.checked < GRACE_SECONDS

    def _look_up(self, key_id: str, hashed: str) -> "asyncio.Task[Caller | None]":
        """Look up a key; concurrent requests with the same key share the lookup."""
        task = self._lookups.get(hashed)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._query(key_id, hashed))
            self._lookups[hashed] = task
            task.add_done_callback(lambda done: self._looked_up(hashed, done))
        return task

    def _looked_up(self, hashed: str, task: "asyncio.Task[Caller | None]") -> None:
        if self._lookups.get(hashed) is task:
            del self._lookups[hashed]
        if not task.cancelled():
            task.exception()

    async def _query(self, key_id: str, hashed: str) -> Caller | None:
        generation = self._generation
        # Known keys never wait behind unknown ones.
        query = self._store.lookup if hashed in self._cached else self._store.check
        record = await query(keys.find, key_id)
        valid = record is not None and record.revoked_at is None and hmac.compare_digest(record.key_hash, hashed)
        if record is None or not valid:
            self._cached.pop(hashed, None)
            return None
        caller = Caller(record.key_id, record.scope, record.tenant, record.user_id)
        if generation == self._generation:  # otherwise a key was revoked meanwhile, perhaps this one
            now = self._clock()
            self._cached[hashed] = _Cached(caller, now, now)
            self._cached.move_to_end(hashed)
            while len(self._cached) > CACHE_SIZE:
                self._cached.popitem(last=False)
        return caller

    async def is_admin(self, key_id: str, hashed: str) -> bool:
        """Whether a key, given its id and digest, is still an admin key; queries the store.

        Raises:
            StoreError: the store is unavailable.
        """
        if self._admin is not None and hmac.compare_digest(hashed, self._admin):
            return True
        record = await self._store.read(keys.find, key_id)
        valid = record is not None and record.revoked_at is None and record.scope == "admin"
        return record is not None and valid and hmac.compare_digest(record.key_hash, hashed)

    def forget(self, tenant: str, user_id: str) -> None:
        """Drop the keys of a user who was erased from the store."""
        self._forget(lambda caller: (caller.tenant, caller.user_id) == (tenant, user_id))

    def revoked(self, *key_ids: str) -> None:
        """Drop revoked keys."""
        gone = set(key_ids)
        self._forget(lambda caller: caller.key_id in gone)

    def forget_all(self) -> None:
        """Drop every key."""
        self._forget(lambda _: True)

    def _forget(self, matches: Callable[[Caller], bool]) -> None:
        self._generation += 1
        for hashed, cached in list(self._cached.items()):
            if matches(cached.caller):
                del self._cached[hashed]
        self._lookups.clear()
