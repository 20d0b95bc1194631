"""The interfaces between the proxy and everything that reads keys and stores profiles."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from popi.profiles.fields import Scope


@dataclass(frozen=True)
class Caller:
    """The sender of a request, identified by its key.

    Attributes:
        key_id: the key's public id, for logs and metrics.
        scope: what the key permits.
        tenant: the tenant whose users it may act for; for an admin key, its own unless the request names another.
        user_id: the one user that a user key belongs to; None for other keys.
    """

    key_id: str
    scope: Scope
    tenant: str
    user_id: str | None = None

    @property
    def speaks_for_users(self) -> bool:
        """Whether the key may name the end user of a request."""
        return self.scope in ("admin", "app")


@dataclass(frozen=True)
class StoredSummary:
    """The summary to insert into a user's requests.

    Attributes:
        text: the summary as users read and edit it; never empty.
        version: starts at 1 and increases with each change.
    """

    text: str
    version: int


class Tap(Protocol):
    """Records one answer as it is streamed.

    Attributes:
        answer_id: the id by which feedback may name the answer.
    """

    answer_id: str

    def feed(self, piece: bytes) -> None:
        """Record a piece of the answer."""
        ...

    def done(self, encoding: str) -> None:
        """The answer is complete; `encoding` is its content encoding."""
        ...


class Recorder(Protocol):
    """Records answers so that feedback can refer to them. Must neither raise nor block."""

    def begin(
        self,
        tenant: str,
        user_id: str,
        api: Literal["chat", "responses", "messages"],
        body: Mapping[str, Any],
        summary: StoredSummary | None,
    ) -> Tap | None:
        """Start recording one request: its body, and the summary that was inserted. Stores only the body's text."""
        ...


class Keys(Protocol):
    """Authenticates keys. Fails closed: raises if a key can't be checked."""

    def cached(self, key: str | None) -> Caller | None:
        """The caller, if known without I/O; None means that `authenticate` has to be called."""
        ...

    async def authenticate(self, key: str | None) -> Caller:
        """The caller that a key belongs to.

        Raises:
            AuthError: the key is missing, unknown or revoked, or the store is unavailable.
        """
        ...


class CachedLookup(Protocol):
    """A cached result of looking up a user's summary."""

    @property
    def summary(self) -> StoredSummary | None:
        """The user's current summary, if any."""
        ...


class Summaries(Protocol):
    """Looks up summaries for the proxy. May be slow or raise anything: the proxy then carries on without a summary."""

    def cached(self, tenant: str, user_id: str) -> CachedLookup | None:
        """The result of `summary_of`, if known without I/O; None means that it has to be called."""
        ...

    async def summary_of(self, tenant: str, user_id: str) -> StoredSummary | None:
        """The user's current summary; None if there is none or personalisation is paused."""
        ...
