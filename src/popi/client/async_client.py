"""The profile API for asyncio."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import httpx2

from popi.client import flows
from popi.client.base import BaseClient, reason
from popi.client.exchange import Flow, NotReached, Reply, T, Wait
from popi.client.flows import Change
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


class AsyncClient(BaseClient[httpx2.AsyncClient]):
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
                    step = flow.throw(NotReached(reason(error)))
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
        preferred_over: Sequence[str] | None = None,
    ) -> SignalsAnswer:
        """As `Client.feedback`."""
        action = flows.feedback_fields(thumbs, edit, replaced_by, preferred_over)
        return await self._run(flows.feedback(self._retries, user_id, answer, action))

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
