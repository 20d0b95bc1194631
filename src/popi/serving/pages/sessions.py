"""Links to a user's page, cookies and sessions.

A link holds the tenant, the user, its creation and expiry times and random bits, signed with a secret of the store
(HMAC-SHA256). It works once, and not after the user was erased. Opening it starts a session: a random cookie, whose
SHA-256 is in the store. A session ends when it expires, at sign-out, when the user is erased and, for the team, when
their admin key is revoked. The team signs in with an admin key or at an identity provider (pages.oidc).
"""

import base64
import hmac
import json
import secrets
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from popi.errors import AuthError
from popi.serving.keys import DEFAULT_TENANT, KeyRing, digest
from popi.serving.pages.login import Login
from popi.serving.pages.settings import PageSettings
from popi.serving.store import sessions, settings
from popi.serving.store.audit import Actor
from popi.serving.store.sessions import SessionRecord
from popi.serving.store.threads import Store
from popi.serving.throttle import Throttle

if TYPE_CHECKING:
    from popi.serving.pages.oidc import Oidc

LINK_SECRET = "link_secret"
"""The store's setting with the secret that signs links, shared by all gateways on the store."""


@dataclass(frozen=True)
class Session:
    """A signed-in person.

    Attributes:
        tenant: the user's tenant; for the team, their key's tenant.
        user_id: the user; None for the team.
        csrf: the token that every form must send back.
        session_hash: identifies the session in the store.
        actor: identifies the person in the audit log.
    """

    tenant: str
    user_id: str | None
    csrf: str
    session_hash: str
    actor: Actor


class Sessions:
    """Opens and checks sessions.

    Args:
        store: where sessions are stored.
        keys: checks admin keys.
        throttle: slows down clients that try wrong links and cookies.
        settings: how long links and sessions last.
        oidc: signs in the team at an identity provider, if given.
    """

    def __init__(
        self, store: Store, keys: KeyRing, throttle: Throttle, settings: PageSettings, oidc: "Oidc | None" = None
    ) -> None:
        self.oidc = oidc
        self._store, self._keys, self._throttle, self._settings = store, keys, throttle, settings
        self._secret: bytes | None = None

    async def link(self, tenant: str, user_id: str) -> tuple[str, float]:
        """A signed link's token, and when it expires (seconds since 1970)."""
        now = await self._store.read(self._store.database.now)
        end = now + self._settings.link_minutes * 60
        text = json.dumps([tenant, user_id, now, end, secrets.token_hex(16)]).encode()
        return f"{_encode(text)}.{_encode(await self._sign(text))}", end

    async def open_link(self, token: str, cookie: str | None = None) -> str | None:
        """Open a session with a link.

        Args:
            token: the link's token.
            cookie: the browser's session cookie, if any, so that a second click on the link stays signed in.

        Returns:
            The session's cookie; None if the link is invalid, expired or already used, or if the user has been erased
            since.

        Raises:
            AuthError: 429, too many recent attempts were wrong.
        """
        return await self._throttle.attempt(digest(token), partial(self._open_link, token, cookie))

    async def _open_link(self, token: str, cookie: str | None) -> str | None:
        try:
            text, signature = (_decode(part) for part in token.split("."))
        except ValueError:
            return None
        if not hmac.compare_digest(await self._sign(text), signature):
            return None
        tenant, user_id, made, end, _ = json.loads(text)
        new, database = secrets.token_urlsafe(32), self._store.database

        def take(connection: Connection) -> bool:
            now = database.now(connection)
            record = self._record(new, tenant, user_id, now)
            return sessions.open_by_link(connection, sha256(text).hexdigest(), made, end, record, now)

        if await self._store.write(take):
            return new
        current = await self.of(cookie, admin=False)
        same_user = current is not None and (current.tenant, current.user_id) == (tenant, user_id)
        return cookie if same_user else None

    async def open_admin(self, key: str) -> str:
        """Open a session for the team with an admin key; returns the cookie.

        Raises:
            AuthError: the key is missing, not an admin key, or can't be checked right now.
        """
        caller = await self._keys.authenticate(key.strip() or None)
        if caller.scope != "admin":
            raise AuthError("this is not an admin key", status=403)
        cookie, database = secrets.token_urlsafe(32), self._store.database

        def write(connection: Connection) -> None:
            now = database.now(connection)
            record = self._record(cookie, caller.tenant, None, now, caller.key_id, digest(key.strip()))
            sessions.add(connection, record)

        await self._store.write(write)
        return cookie

    async def begin_login(self) -> tuple[str, str]:
        """The identity provider's sign-in URL, and the cookie that the browser keeps meanwhile.

        Raises:
            SignInFailed: the provider can't be reached.
        """
        assert self.oidc is not None, "no identity provider is configured"
        url, login = await self.oidc.begin()
        text = login.text()
        return url, f"{_encode(text)}.{_encode(await self._sign(text, b'login:'))}"

    async def open_member(self, query: str, cookie: str | None) -> str | None:
        """Open a session for a member of the team when the provider redirects them back; returns the cookie, or None if
        this browser did not start the sign-in.

        Raises:
            SignInFailed: the provider did not sign them in, or its response is invalid.
            NotAMember: they have no role here.
        """
        assert self.oidc is not None, "no identity provider is configured"
        try:
            text, signature = (_decode(part) for part in (cookie or "").split("."))
        except ValueError:
            return None
        if not hmac.compare_digest(await self._sign(text, b"login:"), signature):
            return None
        member = await self.oidc.finish(query, Login.read(text))
        new, database = secrets.token_urlsafe(32), self._store.database

        def write(connection: Connection) -> None:
            record = self._record(new, DEFAULT_TENANT, None, database.now(connection))
            sessions.add(connection, replace(record, member=member.name, role=member.role))

        await self._store.write(write)
        return new

    async def of(self, cookie: str | None, admin: bool) -> Session | None:
        """The session of a cookie, if it is valid.

        Raises:
            AuthError: 429, too many recent attempts were wrong.
        """
        if not cookie:
            return None
        return await self._throttle.attempt(digest(cookie), partial(self._of, cookie, admin))

    async def _of(self, cookie: str, admin: bool) -> Session | None:
        hashed, database = digest(cookie), self._store.database
        record = await self._store.check(lambda connection: sessions.find(connection, hashed, database.now(connection)))
        if record is None or (record.user_id is None) != admin:
            return None
        by_provider = record.member is not None and self.oidc is not None
        if admin and not by_provider and not await self._keys.is_admin(record.key_id or "", record.key_hash or ""):
            return None
        csrf = sha256(b"csrf:" + cookie.encode()).hexdigest()
        actor = Actor(f"key:{record.key_id}", "admin", "page") if admin else Actor("page", "user", "page")
        if by_provider:
            actor = Actor(f"oidc:{record.member}", "admin" if record.role == "admin" else "viewer", "page")
        return Session(record.tenant, record.user_id, csrf, hashed, actor)

    async def end(self, session: Session) -> None:
        """Sign out."""
        await self._store.write(sessions.end, session.session_hash)

    def _record(
        self,
        cookie: str,
        tenant: str,
        user_id: str | None,
        now: float,
        key_id: str | None = None,
        key_hash: str | None = None,
    ) -> SessionRecord:
        end = now + self._settings.session_minutes * 60
        return SessionRecord(digest(cookie), tenant, user_id, key_id, key_hash, end)

    async def _sign(self, text: bytes, purpose: bytes = b"link:") -> bytes:
        if self._secret is None:
            secret = await self._store.read(settings.get, LINK_SECRET)
            if secret is None:
                secret = await self._store.write(settings.set_default, LINK_SECRET, secrets.token_hex(32))
            self._secret = bytes.fromhex(secret)
        return hmac.digest(self._secret, purpose + text, "sha256")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
