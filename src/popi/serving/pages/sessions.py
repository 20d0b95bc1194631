"""Links to a user's page, cookies, and who is signed in.

A link is `tenant, user, when it was made, when it ends` and random bits, signed with a secret of the store
(HMAC-SHA256). It opens once, and not after the user was erased. Opened, it starts a session: a random cookie, of which
the store has the SHA-256. Sessions end by themselves, at sign-out, when the user is erased, and for the team when their
admin key is revoked. The team signs in by an admin key, or at an identity provider (pages.oidc).
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
from popi.serving.settings import PageSettings
from popi.serving.store import sessions, settings
from popi.serving.store.audit import Actor
from popi.serving.store.sessions import SessionRecord
from popi.serving.store.threads import Store
from popi.serving.throttle import Throttle

if TYPE_CHECKING:
    from popi.serving.pages.oidc import Oidc

LINK_SECRET = "link_secret"
"""The store's setting that signs links: the same for all gateways on it."""


@dataclass(frozen=True)
class Session:
    """Who is signed in.

    Attributes:
        tenant: whose page; of the team, their key's own.
        user_id: of a user's session; None: the team's.
        csrf: what every form must send back.
        session_hash: names the session in the store.
        actor: who they are in the audit log.
    """

    tenant: str
    user_id: str | None
    csrf: str
    session_hash: str
    actor: Actor


class Sessions:
    """Opens and checks sessions.

    Args:
        store: where they are.
        keys: checks admin keys.
        throttle: slows down who tries wrong links and cookies.
        settings: how long they last.
        oidc: signs in the team at an identity provider.
    """

    def __init__(
        self, store: Store, keys: KeyRing, throttle: Throttle, settings: PageSettings, oidc: "Oidc | None" = None
    ) -> None:
        self.oidc = oidc
        self._store, self._keys, self._throttle, self._settings = store, keys, throttle, settings
        self._secret: bytes | None = None

    async def link(self, tenant: str, user_id: str) -> tuple[str, float]:
        """A signed link's token, and when it ends (seconds since 1970)."""
        now = await self._store.read(self._store.database.now)
        end = now + self._settings.link_minutes * 60
        text = json.dumps([tenant, user_id, now, end, secrets.token_hex(16)]).encode()
        return f"{_encode(text)}.{_encode(await self._sign(text))}", end

    async def open_link(self, token: str, cookie: str | None = None) -> str | None:
        """Open a session by a link.

        Args:
            token: of the link.
            cookie: of a session that the browser has: who clicks twice stays signed in.

        Returns:
            The session's cookie; None where the link is not ours, over, or was opened before, by whomever, or where the
            user was erased since it was made.

        Raises:
            AuthError: 429, too many were wrong just now.
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
        open_already = await self.of(cookie, admin=False)
        mine = open_already is not None and (open_already.tenant, open_already.user_id) == (tenant, user_id)
        return cookie if mine else None

    async def open_admin(self, key: str) -> str:
        """Open the team's session by an admin key: the cookie.

        Raises:
            AuthError: no key, not an admin's, or it can't be checked now.
        """
        caller = await self._keys.authenticate(key.strip() or None)
        if caller.scope != "admin":
            raise AuthError("this key is not an admin's", status=403)
        cookie, database = secrets.token_urlsafe(32), self._store.database

        def write(connection: Connection) -> None:
            now = database.now(connection)
            record = self._record(cookie, caller.tenant, None, now, caller.key_id, digest(key.strip()))
            sessions.add(connection, record)

        await self._store.write(write)
        return cookie

    async def begin_login(self) -> tuple[str, str]:
        """Where the browser is sent to sign in at the identity provider, and the cookie that it keeps meanwhile.

        Raises:
            SignInFailed: the provider can't be reached.
        """
        assert self.oidc is not None, "there is no provider"
        url, login = await self.oidc.begin()
        text = login.text()
        return url, f"{_encode(text)}.{_encode(await self._sign(text, b'login:'))}"

    async def open_member(self, query: str, cookie: str | None) -> str | None:
        """Open the team's session for whom the provider sends back: the cookie; None where this browser did not begin
        a sign-in.

        Raises:
            SignInFailed: the provider did not sign them in, or what it says does not hold.
            NotAMember: they have no role here.
        """
        assert self.oidc is not None, "there is no provider"
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
        """Who a cookie stands for; None: nobody.

        Raises:
            AuthError: 429, too many were wrong just now.
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
            kept = await self._store.read(settings.get, LINK_SECRET)
            if kept is None:
                kept = await self._store.write(settings.set_default, LINK_SECRET, secrets.token_hex(32))
            self._secret = bytes.fromhex(kept)
        return hmac.digest(self._secret, purpose + text, "sha256")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
