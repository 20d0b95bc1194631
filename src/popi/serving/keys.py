"""Keys: how they look, how they are made, and how one is checked in the time that a chat can spare."""

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
"""Who comes with the key that POPI_ADMIN_KEY holds."""
SHORTEST_ADMIN_KEY = 16
_KEY = re.compile(r"popi_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

FRESH_SECONDS = 1.0
"""A key that was looked up is not looked up again for so long: a revocation by another process takes as long."""
PATIENCE_SECONDS = 0.025
"""How long a request waits for a look-up of a key that was good before; a chat has 50 ms to spare for all of ours."""
AUTH_SECONDS = 5.0
"""How long a request waits for the look-up of any other key."""
GRACE_SECONDS = 300.0
"""How long a key that was good stays good while the store can't be asked."""
KEPT = 100_000
"""Most keys remembered."""

UNKNOWN = "this key is unknown or revoked; an admin makes keys with `popi keys create` or POST /keys"


def checked_tenant(name: str) -> str:
    """The name of a tenant.

    Raises:
        ConfigError: it is not one.
    """
    if not _TENANT.fullmatch(name):
        raise ConfigError(
            f"a tenant's name has 1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first; "
            f"got {name!r}"
        )
    return name


def digest(key: str) -> str:
    """What the store keeps of a key."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key(scope: Scope, tenant: str, user_id: str | None, now: float) -> tuple[str, KeyRecord]:
    """A new key: the text to hand out, which nobody can be told again, and what is stored of it."""
    key_id = secrets.token_hex(6)
    key = f"popi_{key_id}_{secrets.token_urlsafe(32)}"
    return key, KeyRecord(key_id, digest(key), scope, tenant, user_id, now)


def create(
    database: Database, scope: Scope, tenant: str = DEFAULT_TENANT, user_id: str | None = None
) -> tuple[str, KeyRecord, bool]:
    """Make a key and store it: its text, its record, and whether its tenant is new.

    Raises:
        DataError: a user key without a user, or another with one; a user id that is none.
        ConfigError: the tenant's name is none.
    """
    from popi.profiles.user_id import normal_user_id

    checked_tenant(tenant)
    if (scope == "user") != (user_id is not None):
        raise DataError("a key of scope `user` needs its user (--user), and only such a key takes one")
    if user_id is not None:
        user_id = normal_user_id(user_id)
    key, record = new_key(scope, tenant, user_id, time.time())
    return key, record, database.write(keys.add, record)


def log_revoked(record: KeyRecord) -> None:
    """Say in the log that a key is revoked: after a restored backup it is revoked again by this line."""
    log.info("key revoked", extra={"fields": {"key_id": record.key_id, "at": record.revoked_at}})


def first_admin_key(database: Database) -> str | None:
    """At the first start: a new admin key, unless POPI_ADMIN_KEY holds one or there is one already."""
    if os.environ.get(ADMIN_VARIABLE):
        database.write(keys.ensure_tenant, DEFAULT_TENANT, time.time())
        return None
    key, record = new_key("admin", DEFAULT_TENANT, None, time.time())
    return key if database.write(keys.add_first_admin, record) else None


@dataclass
class _Known:
    """A key that was good at `checked` (monotonic seconds); `asked`: when the store was last asked, answer or not."""

    caller: Caller
    checked: float
    asked: float


class KeyRing:
    """Checks keys against the store (interfaces.Keys).

    A key that was good a moment ago is good without a look-up. While the store can't be asked, keys that were good
    lately stay good for a while, so that its fault stops no chat; all others are refused.

    Args:
        store: where keys are.
        admin_key: by default what POPI_ADMIN_KEY holds; it is an admin key of the tenant `default`, never stored.
        throttle: slows down who tries wrong keys.
        clock: monotonic seconds.

    Raises:
        ConfigError: the admin key is too short to be one.
    """

    def __init__(
        self,
        store: Store,
        admin_key: str | None = None,
        throttle: Throttle | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        given = os.environ.get(ADMIN_VARIABLE) if admin_key is None else admin_key
        if given and len(given) < SHORTEST_ADMIN_KEY:
            raise ConfigError(f"{ADMIN_VARIABLE} must have at least {SHORTEST_ADMIN_KEY} characters")
        self._store, self._clock = store, clock
        self._throttle = throttle or Throttle(ServerSettings())
        self._admin = digest(given) if given else None
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._looking: dict[str, asyncio.Task[Caller | None]] = {}
        self._generation = 0

    def known(self, key: str | None) -> Caller | None:
        """The caller of a key that the store need not be asked of; None: `authenticate` has to say.

        A key in use is looked up anew before that, so that nobody waits for it.
        """
        if not key:
            return None
        hashed, now = digest(key), self._clock()
        caller = self._at_hand(hashed, now)
        known = self._known.get(hashed)
        if caller is not None and known is not None and 2 * (now - known.asked) >= FRESH_SECONDS:
            self._look_up(caller.key_id, hashed)
        return caller

    def _at_hand(self, hashed: str, now: float) -> Caller | None:
        if self._admin is not None and hmac.compare_digest(hashed, self._admin):
            return ADMIN
        known = self._known.get(hashed)
        if known is not None and now - known.asked < FRESH_SECONDS and now - known.checked < GRACE_SECONDS:
            return known.caller
        return None

    async def authenticate(self, key: str | None) -> Caller:
        """The caller that a key stands for.

        Raises:
            AuthError: no key (401), an unknown or revoked one (401), one that can't be checked now (503), or too many
                unknown ones from this client (429).
        """
        if not key:
            raise AuthError("no key was sent; send one as `Authorization: Bearer popi_…`")
        hashed, now = digest(key), self._clock()
        if (caller := self._at_hand(hashed, now)) is not None:
            return caller
        caller = await self._throttle.attempt(hashed, partial(self._checked, key, hashed, now))
        if caller is None:
            raise AuthError(UNKNOWN)
        return caller

    async def _checked(self, key: str, hashed: str, now: float) -> Caller | None:
        known = self._known.get(hashed)
        named = _KEY.fullmatch(key)
        if named is None:
            return None
        if known is not None:
            known.asked = now
        try:
            task = self._look_up(named[1], hashed)
            return await asyncio.wait_for(
                asyncio.shield(task), PATIENCE_SECONDS if known is not None and self._good(known, now) else AUTH_SECONDS
            )
        except (StoreError, TimeoutError) as fault:
            # Not of strangers, who wait for one another; nor where this process was busy itself, and not the store.
            in_time = self._clock() - now < 1.2 * PATIENCE_SECONDS
            if isinstance(fault, TimeoutError) and known is not None and in_time:
                self._store.report_timeout()
            if known is not None and self._good(known, now):
                return known.caller
            log.warning("a key could not be checked: the store does not answer")
            raise AuthError("keys can't be checked now: the store does not answer; try again", status=503) from None

    def _good(self, known: _Known, now: float) -> bool:
        return now - known.checked < GRACE_SECONDS

    def _look_up(self, key_id: str, hashed: str) -> "asyncio.Task[Caller | None]":
        """One look-up for all who wait for the same key."""
        task = self._looking.get(hashed)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(key_id, hashed))
            self._looking[hashed] = task
            task.add_done_callback(lambda done: self._asked(hashed, done))
        return task

    def _asked(self, hashed: str, task: "asyncio.Task[Caller | None]") -> None:
        if self._looking.get(hashed) is task:
            del self._looking[hashed]
        if not task.cancelled():
            task.exception()

    async def _ask(self, key_id: str, hashed: str) -> Caller | None:
        generation = self._generation
        # Keys that were good never wait behind those of strangers.
        ask = self._store.lookup if hashed in self._known else self._store.check
        record = await ask(keys.find, key_id)
        good = record is not None and record.revoked_at is None and hmac.compare_digest(record.key_hash, hashed)
        if record is None or not good:
            self._known.pop(hashed, None)
            return None
        caller = Caller(record.key_id, record.scope, record.tenant, record.user_id)
        if generation == self._generation:  # else a key was taken away meanwhile, perhaps this one
            now = self._clock()
            self._known[hashed] = _Known(caller, now, now)
            self._known.move_to_end(hashed)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return caller

    async def is_admin(self, key_id: str, hashed: str) -> bool:
        """Whether a key, of which the digest is known, is an admin key still; asks the store.

        Raises:
            StoreError: it can't be asked.
        """
        if self._admin is not None and hmac.compare_digest(hashed, self._admin):
            return True
        record = await self._store.read(keys.find, key_id)
        good = record is not None and record.revoked_at is None and record.scope == "admin"
        return record is not None and good and hmac.compare_digest(record.key_hash, hashed)

    def forget(self, tenant: str, user_id: str) -> None:
        """Forget the keys of a user: they are gone from the store."""
        self._forget(lambda caller: (caller.tenant, caller.user_id) == (tenant, user_id))

    def revoked(self, key_id: str) -> None:
        """Forget a key that was revoked."""
        self._forget(lambda caller: caller.key_id == key_id)

    def _forget(self, gone: Callable[[Caller], bool]) -> None:
        self._generation += 1
        for hashed, known in list(self._known.items()):
            if gone(known.caller):
                del self._known[hashed]
        self._looking.clear()
