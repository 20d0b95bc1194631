"""The two clients: the same calls, one that waits and one that awaits. What they send stands in `flows`."""

import asyncio
import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import httpx2
from pydantic import SecretStr

from popi.client import flows
from popi.client.flows import Change, Flow, NotReached, Reply, Request, Wait
from popi.errors import ConfigError
from popi.models.remote.key import checked_url
from popi.models.remote.retries import Retries
from popi.profiles.answers import (
    AuditEntry,
    ControlsAnswer,
    Deleted,
    ExportAnswer,
    ImportAnswer,
    KeyAnswer,
    LinkAnswer,
    MergeAnswer,
    NewKeyAnswer,
    PauseAnswer,
    Receipt,
    SignalsAnswer,
    SummaryAnswer,
    UserAnswer,
)
from popi.profiles.fields import Scope
from popi.profiles.requests import ClauseEdit, ImportedUser
from popi.signals.types import Signal, User

KEY_ENV = "POPI_KEY"
T = TypeVar("T")
Http = TypeVar("Http", httpx2.Client, httpx2.AsyncClient)


class _Base(ABC, Generic[Http]):
    """What both clients are made of."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        key_env: str = KEY_ENV,
        tenant: str | None = None,
        timeout: float = 60.0,
        retries: Retries | None = None,
        transport: Any = None,
    ) -> None:
        """Name a gateway; nothing is sent yet.

        Args:
            url: the gateway, as ``http://localhost:8600``: no ``/v1``.
            key: an app key reaches the users of its tenant, a user key its own profile alone. None: from the
                environment.
            key_env: the environment variable that holds the key where none is given.
            tenant: whose users, where the key is an admin's.
            timeout: seconds without a byte from the gateway, and to reach it.
            retries: when to ask again after 429, 502, 503, 504, or a connection that failed.
            transport: sends in place of the network (an httpx2 transport); for tests and unusual networks.

        Raises:
            ConfigError: the URL is not one, there is no key, or the key or the tenant's name can't be sent.
        """
        self.url = checked_url(url, "gateway")
        self._key = SecretStr(_checked_key(key, key_env))
        self._retries = retries or Retries()
        headers = {} if tenant is None else {"x-popi-tenant": _sendable(tenant, "the tenant's name")}
        # A redirect would carry the key to another server.
        more: dict[str, Any] = {} if transport is None else {"transport": transport}
        self._http: Http = self._open(headers=headers, timeout=timeout, follow_redirects=False, **more)

    @staticmethod
    @abstractmethod
    def _open(**settings: Any) -> Http: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _request(self, request: Request) -> httpx2.Request:
        content = {"content-type": "application/json"} if request.content is not None else {}
        sent = {**request.headers, **content, "authorization": f"Bearer {self._key.get_secret_value()}"}
        return self._http.build_request(request.method, self.url + request.path, headers=sent, content=request.content)


class Client(_Base[httpx2.Client]):
    """The profile API of a gateway.

    Failures are `GatewayError`, with the HTTP `status` and the gateway's `code`; a user id or body that can't be right
    is a `DataError`, before anything is sent. Every call but `create_key` is safe to repeat, and is repeated by itself
    where that may help (see `retries`). May be used from several threads.
    """

    @staticmethod
    def _open(**settings: Any) -> httpx2.Client:
        return httpx2.Client(**settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Wait):
                    time.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    reply = self._http.send(self._request(step))
                except httpx2.HTTPError as error:
                    step = flow.throw(NotReached(_reason(error)))
                else:
                    step = flow.send(Reply(reply.status_code, reply.headers, reply.content))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def user(self, user_id: str) -> UserAnswer:
        """How many signals, which summary, and how its renewal stands; a GatewayError of status 404 for nobody."""
        return self._run(flows.user(self._retries, user_id))

    def add_signals(self, user_id: str, signals: Sequence[Signal]) -> SignalsAnswer:
        """Add signals, oldest first; makes the user if need be. Those that are there already change nothing."""
        return self._run(flows.add_signals(self._retries, user_id, signals))

    def summary(self, user_id: str) -> SummaryAnswer | None:
        """The current summary; None where there is no user, or no summary yet."""
        return self._run(flows.summary(self._retries, user_id))

    def put_summary(
        self,
        user_id: str,
        text: str | None = None,
        *,
        clauses: Sequence[ClauseEdit] | None = None,
        version: int | None = None,
    ) -> SummaryAnswer:
        """Write a summary, as text or in clauses.

        Args:
            user_id: whose.
            text: all of it.
            clauses: or this.
            version: what it replaces: where another is current by now, GatewayError of status 412. 0: there was none
                (428, where there is one by now). None: whichever is current; what came since you looked is lost then.
        """
        edit = flows.summary_edit(text, clauses)
        return self._run(flows.put_summary(self._retries, user_id, edit, version))

    def edit_summary(self, user_id: str, change: Change) -> SummaryAnswer:
        """Change a summary without losing anybody's edit.

        Args:
            user_id: whose.
            change: the current summary (None: there is none) → the new text, or a SummaryEdit. It is called anew
                where another edit came between.
        """
        return self._run(flows.edit_summary(self._retries, user_id, change))

    def versions(self, user_id: str) -> list[SummaryAnswer]:
        """The versions that are kept, newest first."""
        return self._run(flows.versions(self._retries, user_id))

    def rollback(self, user_id: str, to: int, *, version: int | None = None) -> SummaryAnswer:
        """Make the content of version `to` the newest; `version` as for `put_summary`."""
        return self._run(flows.rollback(self._retries, user_id, to, version))

    def rebuild(self, user_id: str) -> UserAnswer:
        """Have the summary written anew from all signals, not only from those since the last renewal."""
        return self._run(flows.rebuild(self._retries, user_id))

    def delete_clause(self, user_id: str, clause_id: str, *, signals: bool = False, forbid: bool = False) -> Deleted:
        """Delete a statement from every version of the summary.

        Args:
            user_id: whose.
            clause_id: its id.
            signals: delete the signals that it rests on, too.
            forbid: it must not be said again: a hash of its words is kept, and no word.
        """
        return self._run(
            flows.delete(self._retries, user_id, "summary", "clauses", clause_id, signals=signals, forbid=forbid)
        )

    def delete_version(self, user_id: str, version: int) -> Deleted:
        """Delete a version of the summary; instead of the current one the one before it is current."""
        return self._run(flows.delete(self._retries, user_id, "summary", "versions", str(version)))

    def delete_signal(self, user_id: str, signal_id: str) -> Deleted:
        """Delete a signal, and the statements that rest on it, from every version."""
        return self._run(flows.delete(self._retries, user_id, "signals", signal_id))

    def delete_words(self, user_id: str, forbidden_id: str) -> Deleted:
        """Delete the words of what is forbidden; it stays forbidden."""
        return self._run(flows.delete(self._retries, user_id, "summary", "forbidden", forbidden_id, "words"))

    def controls(self, user_id: str) -> ControlsAnswer:
        """How the user's two switches stand, whether or not anything is known of them."""
        return self._run(flows.controls(self._retries, user_id))

    def set_controls(self, user_id: str, *, use: bool | None = None, learn: bool | None = None) -> ControlsAnswer:
        """Set the user's switches, also before anything is known of them.

        Args:
            user_id: whose.
            use: whether chats get what is known; None leaves it as it is.
            learn: whether anything is learned, of signals, imports, captured answers or feedback; None likewise.
        """
        return self._run(flows.set_controls(self._retries, user_id, use, learn))

    def feedback(
        self,
        user_id: str,
        answer: str,
        *,
        thumbs: Literal["up", "down"] | None = None,
        edit: str | None = None,
        replaced_by: str | None = None,
        rather_than: Sequence[str] | None = None,
    ) -> SignalsAnswer:
        """What the user did with a proxied answer: one of the four. For tenants that opted in to capture.

        Args:
            user_id: whose answer.
            answer: its header `x-popi-answer-id`.
            thumbs: the user's thumb.
            edit: the answer as the user rewrote it.
            replaced_by: the answer that the user asked for instead, and kept.
            rather_than: answers that the user did not pick.
        """
        told = flows.feedback_fields(thumbs, edit, replaced_by, rather_than)
        return self._run(flows.feedback(self._retries, user_id, answer, told))

    def export(self, user_id: str) -> ExportAnswer:
        """Everything that is stored of a user."""
        return self._run(flows.export(self._retries, user_id))

    def training_line(self, user_id: str) -> User:
        """A user as `popi train` reads them, for `popi.write_users`."""
        return self._run(flows.training_line(self._retries, user_id))

    def import_users(self, users: Sequence[User | ImportedUser]) -> ImportAnswer:
        """Add users, or signals to users: all or none. Needs an app or admin key."""
        return self._run(flows.import_users(self._retries, users))

    def merge(self, source: str, *, into: str) -> MergeAnswer:
        """Make one user part of another, who is made if need be: signals, summaries, keys. Needs an app or admin key.

        `source` is gone afterwards; GatewayError of status 404 where there is none. Where a reply was lost and the
        request went out again, the answer is of the second, which found less to move.
        """
        return self._run(flows.merge(self._retries, source, into))

    def erase(self, user_id: str) -> Receipt:
        """Remove all of a user.

        Where a reply was lost and the request went out again, the receipt is of the second, which found less to remove.
        """
        return self._run(flows.erase(self._retries, user_id))

    def pause(self, user_id: str, paused: bool = True) -> PauseAnswer:
        """Both switches at once: paused, nothing is used or learned; `paused=False`: both are on again."""
        return self._run(flows.pause(self._retries, user_id, paused))

    def link(self, user_id: str) -> LinkAnswer:
        """A link that opens the user's own page for a short time: hand it to them alone. Needs an app or admin key."""
        return self._run(flows.link(self._retries, user_id))

    def users(self, prefix: str = "") -> Iterator[str]:
        """The ids of the tenant's users that begin with `prefix`, in order. Needs an app or admin key."""
        after: str | None = ""
        while after is not None:
            page = self._run(flows.users(self._retries, prefix, after))
            yield from page.items
            after = page.next

    def signals(self, user_id: str, contains: str = "") -> Iterator[Signal]:
        """A user's signals, newest first; of these, those with the words `contains` in one of their texts."""
        after: str | None = ""
        while after is not None:
            page = self._run(flows.signals(self._retries, user_id, contains, after))
            yield from page.items
            after = page.next

    def tenants(self) -> Iterator[str]:
        """The names of all tenants, in order. Needs an admin key."""
        after: str | None = ""
        while after is not None:
            page = self._run(flows.tenants(self._retries, after))
            yield from page.items
            after = page.next

    def keys(self, tenant: str | None = None) -> Iterator[KeyAnswer]:
        """The keys of a tenant, or of all, oldest first, revoked ones among them. Needs an admin key."""
        after: str | None = ""
        while after is not None:
            page = self._run(flows.keys(self._retries, tenant, after))
            yield from page.items
            after = page.next

    def audit(self, tenant: str | None = None, user_id: str | None = None) -> Iterator[AuditEntry]:
        """Who read or changed whom, newest first: of all tenants, of one, or of one user of it. Needs an admin key."""
        after: str | None = ""
        while after is not None:
            page = self._run(flows.audit(self._retries, tenant, user_id, after))
            yield from page.items
            after = page.next

    def create_key(self, scope: Scope, *, tenant: str | None = None, user_id: str | None = None) -> NewKeyAnswer:
        """Make a key; its text is in this answer alone. Needs an admin key.

        Not repeated where the answer was lost: `keys` shows whether there is one more then.

        Args:
            scope: admin: everything; app: speaks for its tenant's users; user: one user's profile.
            tenant: whose, made with its first key; None: the client's.
            user_id: of a user key, and of no other.
        """
        return self._run(flows.create_key(self._retries, scope, tenant, user_id))

    def revoke_key(self, key_id: str) -> KeyAnswer:
        """Revoke a key: the gateway asked refuses it at once, others within seconds. Needs an admin key."""
        return self._run(flows.revoke_key(self._retries, key_id))


class AsyncClient(_Base[httpx2.AsyncClient]):
    """`Client` for asyncio: the same calls, awaited."""

    @staticmethod
    def _open(**settings: Any) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(**settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    reply = await self._http.send(self._request(step))
                except httpx2.HTTPError as error:
                    step = flow.throw(NotReached(_reason(error)))
                else:
                    step = flow.send(Reply(reply.status_code, reply.headers, reply.content))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    async def user(self, user_id: str) -> UserAnswer:
        """As `Client.user`."""
        return await self._run(flows.user(self._retries, user_id))

    async def add_signals(self, user_id: str, signals: Sequence[Signal]) -> SignalsAnswer:
        """As `Client.add_signals`."""
        return await self._run(flows.add_signals(self._retries, user_id, signals))

    async def summary(self, user_id: str) -> SummaryAnswer | None:
        """As `Client.summary`."""
        return await self._run(flows.summary(self._retries, user_id))

    async def put_summary(
        self,
        user_id: str,
        text: str | None = None,
        *,
        clauses: Sequence[ClauseEdit] | None = None,
        version: int | None = None,
    ) -> SummaryAnswer:
        """As `Client.put_summary`."""
        edit = flows.summary_edit(text, clauses)
        return await self._run(flows.put_summary(self._retries, user_id, edit, version))

    async def edit_summary(self, user_id: str, change: Change) -> SummaryAnswer:
        """As `Client.edit_summary`."""
        return await self._run(flows.edit_summary(self._retries, user_id, change))

    async def versions(self, user_id: str) -> list[SummaryAnswer]:
        """As `Client.versions`."""
        return await self._run(flows.versions(self._retries, user_id))

    async def rollback(self, user_id: str, to: int, *, version: int | None = None) -> SummaryAnswer:
        """As `Client.rollback`."""
        return await self._run(flows.rollback(self._retries, user_id, to, version))

    async def rebuild(self, user_id: str) -> UserAnswer:
        """As `Client.rebuild`."""
        return await self._run(flows.rebuild(self._retries, user_id))

    async def delete_clause(
        self, user_id: str, clause_id: str, *, signals: bool = False, forbid: bool = False
    ) -> Deleted:
        """As `Client.delete_clause`."""
        return await self._run(
            flows.delete(self._retries, user_id, "summary", "clauses", clause_id, signals=signals, forbid=forbid)
        )

    async def delete_version(self, user_id: str, version: int) -> Deleted:
        """As `Client.delete_version`."""
        return await self._run(flows.delete(self._retries, user_id, "summary", "versions", str(version)))

    async def delete_signal(self, user_id: str, signal_id: str) -> Deleted:
        """As `Client.delete_signal`."""
        return await self._run(flows.delete(self._retries, user_id, "signals", signal_id))

    async def delete_words(self, user_id: str, forbidden_id: str) -> Deleted:
        """As `Client.delete_words`."""
        return await self._run(flows.delete(self._retries, user_id, "summary", "forbidden", forbidden_id, "words"))

    async def controls(self, user_id: str) -> ControlsAnswer:
        """As `Client.controls`."""
        return await self._run(flows.controls(self._retries, user_id))

    async def set_controls(self, user_id: str, *, use: bool | None = None, learn: bool | None = None) -> ControlsAnswer:
        """As `Client.set_controls`."""
        return await self._run(flows.set_controls(self._retries, user_id, use, learn))

    async def feedback(
        self,
        user_id: str,
        answer: str,
        *,
        thumbs: Literal["up", "down"] | None = None,
        edit: str | None = None,
        replaced_by: str | None = None,
        rather_than: Sequence[str] | None = None,
    ) -> SignalsAnswer:
        """As `Client.feedback`."""
        told = flows.feedback_fields(thumbs, edit, replaced_by, rather_than)
        return await self._run(flows.feedback(self._retries, user_id, answer, told))

    async def export(self, user_id: str) -> ExportAnswer:
        """As `Client.export`."""
        return await self._run(flows.export(self._retries, user_id))

    async def training_line(self, user_id: str) -> User:
        """As `Client.training_line`."""
        return await self._run(flows.training_line(self._retries, user_id))

    async def import_users(self, users: Sequence[User | ImportedUser]) -> ImportAnswer:
        """As `Client.import_users`."""
        return await self._run(flows.import_users(self._retries, users))

    async def merge(self, source: str, *, into: str) -> MergeAnswer:
        """As `Client.merge`."""
        return await self._run(flows.merge(self._retries, source, into))

    async def erase(self, user_id: str) -> Receipt:
        """As `Client.erase`."""
        return await self._run(flows.erase(self._retries, user_id))

    async def pause(self, user_id: str, paused: bool = True) -> PauseAnswer:
        """As `Client.pause`."""
        return await self._run(flows.pause(self._retries, user_id, paused))

    async def link(self, user_id: str) -> LinkAnswer:
        """As `Client.link`."""
        return await self._run(flows.link(self._retries, user_id))

    async def users(self, prefix: str = "") -> AsyncIterator[str]:
        """As `Client.users`."""
        after: str | None = ""
        while after is not None:
            page = await self._run(flows.users(self._retries, prefix, after))
            for one in page.items:
                yield one
            after = page.next

    async def signals(self, user_id: str, contains: str = "") -> AsyncIterator[Signal]:
        """As `Client.signals`."""
        after: str | None = ""
        while after is not None:
            page = await self._run(flows.signals(self._retries, user_id, contains, after))
            for one in page.items:
                yield one
            after = page.next

    async def tenants(self) -> AsyncIterator[str]:
        """As `Client.tenants`."""
        after: str | None = ""
        while after is not None:
            page = await self._run(flows.tenants(self._retries, after))
            for one in page.items:
                yield one
            after = page.next

    async def keys(self, tenant: str | None = None) -> AsyncIterator[KeyAnswer]:
        """As `Client.keys`."""
        after: str | None = ""
        while after is not None:
            page = await self._run(flows.keys(self._retries, tenant, after))
            for one in page.items:
                yield one
            after = page.next

    async def audit(self, tenant: str | None = None, user_id: str | None = None) -> AsyncIterator[AuditEntry]:
        """As `Client.audit`."""
        after: str | None = ""
        while after is not None:
            page = await self._run(flows.audit(self._retries, tenant, user_id, after))
            for one in page.items:
                yield one
            after = page.next

    async def create_key(self, scope: Scope, *, tenant: str | None = None, user_id: str | None = None) -> NewKeyAnswer:
        """As `Client.create_key`."""
        return await self._run(flows.create_key(self._retries, scope, tenant, user_id))

    async def revoke_key(self, key_id: str) -> KeyAnswer:
        """As `Client.revoke_key`."""
        return await self._run(flows.revoke_key(self._retries, key_id))


def _checked_key(key: str | None, variable: str) -> str:
    """The key as it is sent.

    Raises:
        ConfigError: there is none, or it could not stand in a header.
    """
    found = (os.environ.get(variable, "") if key is None else key).strip()
    if not found:
        raise ConfigError(f"no key for the gateway: give one, or put it into {variable}; `popi keys create` makes one")
    return _sendable(found, "the key for the gateway")


def _sendable(value: str, what: str) -> str:
    if not value or not (value.isascii() and value.isprintable() and " " not in value):
        raise ConfigError(f"{what} is empty, or has blanks, line ends or other characters that can't be in one")
    return value


def _reason(error: httpx2.HTTPError) -> str:
    kind = "no answer in time" if isinstance(error, httpx2.TimeoutException) else "the connection failed"
    return f"{kind} ({error or type(error).__name__})"
