"""How much one key may ask for: requests a second (a token bucket), requests at once, bytes of bodies at once.

In this process, for all that the key asks here: chats and profiles draw on one account.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from popi.serving.proxy.refusals import Refusal
from popi.serving.proxy.settings import ProxySettings

MOST_KEPT = 10_000
"""Keys counted; from so many on, those that are idle are forgotten first."""


@dataclass
class _Use:
    tokens: float
    at: float
    under_way: int = 0
    held: int = 0


class Limits:
    """Counts by key.

    Args:
        rate: requests a second, on average; None: any number.
        burst: requests that may come at once.
        concurrency: requests under way at once.
        clock: seconds that never go back.
        body_bytes: bytes of bodies held at once; `None`: unlimited.
    """

    def __init__(
        self,
        rate: float | None,
        burst: int,
        concurrency: int,
        clock: Callable[[], float] = time.monotonic,
        body_bytes: int | None = None,
    ) -> None:
        self._rate, self._burst, self._concurrency, self._clock = rate, burst, concurrency, clock
        self._body_bytes = body_bytes
        self._uses: dict[str, _Use] = {}

    @classmethod
    def of(cls, settings: ProxySettings) -> "Limits":
        """As the settings say."""
        return cls(
            settings.requests_per_s, settings.burst, settings.concurrency, body_bytes=settings.body_bytes_at_once
        )

    def enter(self, key_id: str) -> None:
        """Count a request in; `leave` must follow.

        Raises:
            Refusal: 429, with the seconds after which there is room; nothing was counted.
        """
        use = self._uses.get(key_id)
        if use is None:
            if len(self._uses) >= MOST_KEPT:
                self._drop_idle()
            use = self._uses[key_id] = _Use(self._burst, self._clock())
        if use.under_way >= self._concurrency:
            raise Refusal(
                429,
                "too_many_at_once",
                f"this key has {use.under_way} requests under way, and may have {self._concurrency}; "
                "wait for one to end",
                retry_after=1,
            )
        if self._rate is not None:
            now = self._clock()
            use.tokens = min(self._burst, use.tokens + (now - use.at) * self._rate)
            use.at = now
            if use.tokens < 1:
                wait = (1 - use.tokens) / self._rate
                raise Refusal(
                    429,
                    "too_many_a_second",
                    f"this key may send {self._rate:g} requests a second; try again in {wait:.2g} seconds",
                    retry_after=math.ceil(wait),
                )
            use.tokens -= 1
        use.under_way += 1

    def _drop_idle(self) -> None:
        """Forget those who may do again all that somebody new may."""
        now = self._clock()
        full = 0.0 if self._rate is None else self._burst / self._rate
        for key_id, use in list(self._uses.items()):
            if not use.under_way and now - use.at >= full:
                del self._uses[key_id]

    def hold(self, key_id: str, size: int) -> None:
        """Count bytes of the body of a request that has entered; `leave` takes them back.

        Raises:
            Refusal: 429; nothing was counted.
        """
        use = self._uses[key_id]
        if self._body_bytes is not None and use.held + size > self._body_bytes:
            raise Refusal(
                429,
                "too_many_bytes",
                f"this key may have {self._body_bytes:,} bytes of bodies in flight; wait for a request to end",
                retry_after=1,
            )
        use.held += size

    def leave(self, key_id: str, held: int = 0) -> None:
        """A request has ended, for which so many bytes were held."""
        use = self._uses[key_id]
        use.under_way -= 1
        use.held -= held
