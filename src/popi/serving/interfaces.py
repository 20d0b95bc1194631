"""What the proxy asks of keys and of the store, and no more: either side can change behind it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from popi.profiles.fields import Scope


@dataclass(frozen=True)
class Caller:
    """Who sent a request, as its key says.

    Attributes:
        key_id: the public id of the key, for logs and metrics.
        scope: what the key may do.
        tenant: whose users it may speak for; an admin key's own tenant where it names no other.
        user_id: of a user key, the one user.
    """

    key_id: str
    scope: Scope
    tenant: str
    user_id: str | None = None

    @property
    def speaks_for_users(self) -> bool:
        """Whether a user id that comes with a request counts."""
        return self.scope in ("admin", "app")


@dataclass(frozen=True)
class StoredSummary:
    """The summary that is put into a user's requests.

    Attributes:
        text: as people read and edit it; never empty.
        version: counts up from 1 with each change.
    """

    text: str
    version: int


class Tap(Protocol):
    """Looks on while one answer passes.

    Attributes:
        answer_id: what feedback may call the answer.
    """

    answer_id: str

    def feed(self, piece: bytes) -> None:
        """A piece of the answer has passed."""
        ...

    def done(self, encoding: str) -> None:
        """The answer is through, whole; `encoding`: its content encoding."""
        ...


class Recorder(Protocol):
    """Keeps answers so that feedback can name them. Must not raise, nor wait."""

    def begin(
        self,
        tenant: str,
        user_id: str,
        api: Literal["chat", "responses", "messages"],
        body: Mapping[str, Any],
        summary: StoredSummary | None,
    ) -> Tap | None:
        """Look on at one request: its body, and the summary that was put in. Keeps nothing of the body but text."""
        ...


class Keys(Protocol):
    """Checks keys. Fails closed: where it can't tell, it raises."""

    def known(self, key: str | None) -> Caller | None:
        """The caller, where that can be told without asking anybody; None: `authenticate` has to say."""
        ...

    async def authenticate(self, key: str | None) -> Caller:
        """The caller that a key stands for.

        Raises:
            AuthError: no key, an unknown or a revoked one, or the store can't be asked.
        """
        ...


class AtHand(Protocol):
    """A look-up that is done."""

    @property
    def summary(self) -> StoredSummary | None:
        """The user's current summary; None where there is none."""
        ...


class Summaries(Protocol):
    """Reads summaries for the proxy. May raise anything and take its time: the proxy goes on without."""

    def at_hand(self, tenant: str, user_id: str) -> AtHand | None:
        """What `summary_of` would say, where it can be said at once; None: ask it."""
        ...

    async def summary_of(self, tenant: str, user_id: str) -> StoredSummary | None:
        """The user's current summary; None where there is none, or personalisation is paused."""
        ...
