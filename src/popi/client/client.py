"""The profile API, blocking. `flows` has the logic of each call."""

import time
from collections.abc import Iterator, Sequence
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


class Client(BaseClient[httpx2.Client]):
    """The profile API of a gateway.

    Failures raise `GatewayError` with the HTTP `status` and the gateway's `code`. An invalid user id or body raises
    `DataError` before anything is sent. Every call except `create_key` is safe to repeat, and is retried automatically
    (see `retries`). A client can be used from several threads.
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
                    step = flow.throw(NotReached(reason(error)))
                else:
                    step = flow.send(Reply(reply.status_code, reply.headers, reply.content))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def user(self, user_id: str) -> UserAnswer:
        """The user's signal count, summary and renewal state. Raises GatewayError (404) if there is no such user."""
        return self._run(flows.user(self._retries, user_id))

    def add_signals(self, user_id: str, signals: Sequence[Signal]) -> SignalsAnswer:
        """Add signals, oldest first, creating the user if necessary. Signals that are already stored are ignored."""
        return self._run(flows.add_signals(self._retries, user_id, signals))

    def summary(self, user_id: str) -> SummaryAnswer | None:
        """The current summary; `None` if there is no user or no summary yet."""
        return self._run(flows.summary(self._retries, user_id))

    def put_summary(
        self,
        user_id: str,
        text: str | None = None,
        *,
        clauses: Sequence[ClauseEdit] | None = None,
        version: int | None = None,
    ) -> SummaryAnswer:
        """Write a summary, as text or as clauses.

        Args:
            user_id: the user.
            text: the whole summary.
            clauses: the clauses, instead of `text`.
            version: the version to replace; raises GatewayError (412) if another one is current by now. 0 means that
                there was none (428 if there is one by now). `None` replaces any version; edits made since you read it
                are lost.
        """
        edit = flows.summary_edit(text, clauses)
        return self._run(flows.put_summary(self._retries, user_id, edit, version))

    def edit_summary(self, user_id: str, change: Change) -> SummaryAnswer:
        """Change a summary without overwriting concurrent edits.

        Args:
            user_id: the user.
            change: maps the current summary (`None` if there is no summary) to the new text or a SummaryEdit. It is
                called again if another edit came in between.
        """
        return self._run(flows.edit_summary(self._retries, user_id, change))

    def versions(self, user_id: str) -> list[SummaryAnswer]:
        """The stored versions, newest first."""
        return self._run(flows.versions(self._retries, user_id))

    def rollback(self, user_id: str, to: int, *, version: int | None = None) -> SummaryAnswer:
        """Restore the content of version `to` as a new version; `version` as for `put_summary`."""
        return self._run(flows.rollback(self._retries, user_id, to, version))

    def rebuild(self, user_id: str) -> UserAnswer:
        """Have the summary rewritten from all signals, not only from those since the last renewal."""
        return self._run(flows.rebuild(self._retries, user_id))

    def delete_clause(self, user_id: str, clause_id: str, *, signals: bool = False, forbid: bool = False) -> Deleted:
        """Delete a statement from every version of the summary.

        Args:
            user_id: the user.
            clause_id: the statement's id.
            signals: also delete the signals that it rests on.
            forbid: forbid it from now on; a hash of its words is stored, but not the words.
        """
        return self._run(
            flows.delete(self._retries, user_id, "summary", "clauses", clause_id, signals=signals, forbid=forbid)
        )

    def delete_version(self, user_id: str, version: int) -> Deleted:
        """Delete a version of the summary. If it was current, the previous version becomes current."""
        return self._run(flows.delete(self._retries, user_id, "summary", "versions", str(version)))

    def delete_signal(self, user_id: str, signal_id: str) -> Deleted:
        """Delete a signal and, from every version, the statements that rest on it."""
        return self._run(flows.delete(self._retries, user_id, "signals", signal_id))

    def delete_words(self, user_id: str, forbidden_id: str) -> Deleted:
        """Delete the words of a forbidden statement, which stays forbidden."""
        return self._run(flows.delete(self._retries, user_id, "summary", "forbidden", forbidden_id, "words"))

    def controls(self, user_id: str) -> ControlsAnswer:
        """The user's two switches, whether or not anything is stored about the user."""
        return self._run(flows.controls(self._retries, user_id))

    def set_controls(self, user_id: str, *, use: bool | None = None, learn: bool | None = None) -> ControlsAnswer:
        """Set the user's switches, even before anything is stored about the user.

        Args:
            user_id: the user.
            use: whether chats get the summary; `None` leaves it unchanged.
            learn: whether to learn from signals, imports, captured answers and feedback; `None` leaves it unchanged.
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
        preferred_over: Sequence[str] | None = None,
    ) -> SignalsAnswer:
        """Send what the user did with a proxied answer: one of the four actions. For tenants that opted in to capture.

        Args:
            user_id: the user.
            answer: the answer's id, from the header `x-popi-answer-id`.
            thumbs: thumbs up or down.
            edit: the answer as the user rewrote it.
            replaced_by: the answer that the user requested and chose instead.
            preferred_over: answers that the user did not choose.
        """
        action = flows.feedback_fields(thumbs, edit, replaced_by, preferred_over)
        return self._run(flows.feedback(self._retries, user_id, answer, action))

    def export(self, user_id: str) -> ExportAnswer:
        """Everything that is stored about a user."""
        return self._run(flows.export(self._retries, user_id))

    def training_line(self, user_id: str) -> User:
        """A user in the form that `popi train` reads, for `popi.write_users`."""
        return self._run(flows.training_line(self._retries, user_id))

    def import_users(self, users: Sequence[User | ImportedUser]) -> ImportAnswer:
        """Add users, or signals to users: all of them or none. Needs an app or admin key."""
        return self._run(flows.import_users(self._retries, users))

    def merge(self, source: str, *, into: str) -> MergeAnswer:
        """Merge one user into another, creating that one if necessary: signals, summaries, keys. Needs an app or admin
        key.

        `source` is gone afterwards; raises GatewayError (404) if there is no such user. If a reply is lost and the
        request is retried, the answer is the second one's, which may report less.
        """
        return self._run(flows.merge(self._retries, source, into))

    def erase(self, user_id: str) -> Receipt:
        """Erase a user.

        If a reply is lost and the request is retried, the receipt is the second one's, which may report less.
        """
        return self._run(flows.erase(self._retries, user_id))

    def pause(self, user_id: str, paused: bool = True) -> PauseAnswer:
        """Set both switches at once: while paused, nothing is used or learned; `paused=False` turns both on."""
        return self._run(flows.pause(self._retries, user_id, paused))

    def link(self, user_id: str) -> LinkAnswer:
        """A short-lived link that opens the user's own page: give it only to the user. Needs an app or admin key."""
        return self._run(flows.link(self._retries, user_id))

    def users(self, prefix: str = "") -> Iterator[str]:
        """The ids of the tenant's users that start with `prefix`, in order. Needs an app or admin key."""
        after: str | None = ""
        while after is not None:
            page = self._run(flows.users(self._retries, prefix, after))
            yield from page.items
            after = page.next

    def signals(self, user_id: str, contains: str = "") -> Iterator[Signal]:
        """A user's signals, newest first; with `contains`, only those with this in one of their texts."""
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
        """The keys of a tenant, or of all tenants, oldest first, including revoked ones. Needs an admin key."""
        after: str | None = ""
        while after is not None:
            page = self._run(flows.keys(self._retries, tenant, after))
            yield from page.items
            after = page.next

    def audit(self, tenant: str | None = None, user_id: str | None = None) -> Iterator[AuditEntry]:
        """The audit log, newest first: of all tenants, of one, or of one of its users. Needs an admin key."""
        after: str | None = ""
        while after is not None:
            page = self._run(flows.audit(self._retries, tenant, user_id, after))
            yield from page.items
            after = page.next

    def create_key(self, scope: Scope, *, tenant: str | None = None, user_id: str | None = None) -> NewKeyAnswer:
        """Create a key; only this answer contains the key itself. Needs an admin key.

        It is not retried if the answer is lost; check with `keys` whether the key was created.

        Args:
            scope: admin: everything; app: acts for all users of its tenant; user: one user's profile.
            tenant: the key's tenant, created with its first key; `None` uses the client's.
            user_id: the user of a user key; only for user keys.
        """
        return self._run(flows.create_key(self._retries, scope, tenant, user_id))

    def revoke_key(self, key_id: str) -> KeyAnswer:
        """Revoke a key. This gateway rejects it at once, others within seconds. Needs an admin key."""
        return self._run(flows.revoke_key(self._retries, key_id))
