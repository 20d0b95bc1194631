"""Limits per key: requests per second (a token bucket), concurrent requests, and body bytes in flight.

They apply per process; chat and profile requests share them.
"""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from popi.serving.proxy.refusals import Refusal
from popi.serving.proxy.settings import ProxySettings

MAX_BUCKETS = 10_000
"""Maximum buckets to remember; beyond this the least recently used one is dropped, and starts full next time."""


class Buckets:
    """One token bucket per name.

    Args:
        rate: tokens refilled per second.
        burst: a bucket's capacity.
        clock: monotonic time in seconds.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were last counted

    def take(self, name: str) -> float:
        """Take a token. Returns 0, or the seconds until one is available."""
        now = self._clock()
        tokens, at = self._levels.pop(name, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        wait = max(0.0, (1 - tokens) / self._rate)
        self._levels[name] = (tokens if wait else tokens - 1, now)
        if len(self._levels) > MAX_BUCKETS:
            self._levels.popitem(last=False)
        return wait

    def refund(self, name: str) -> None:
        """Undo a `take`."""
        if (level := self._levels.get(name)) is not None:
            self._levels[name] = (level[0] + 1, level[1])


class Limits:
    """Request counts per key.

    Args:
        rate: average requests per second; `None`: unlimited.
        burst: requests that may arrive at once.
        concurrency: maximum concurrent requests.
        clock: monotonic time in seconds.
        body_bytes: maximum body bytes in flight; `None`: unlimited.
    """

    def __init__(
        self,
        rate: float | None,
        burst: int,
        concurrency: int,
        clock: Callable[[], float] = time.monotonic,
        body_bytes: int | None = None,
    ) -> None:
        self._rate, self._concurrency, self._body_bytes = rate, concurrency, body_bytes
        self._buckets = Buckets(rate, burst, clock) if rate is not None else None
        self._in_flight: Counter[str] = Counter()
        self._held_bytes: Counter[str] = Counter()

    @classmethod
    def from_settings(cls, settings: ProxySettings) -> "Limits":
        return cls(
            settings.requests_per_s, settings.burst, settings.concurrency, body_bytes=settings.max_body_bytes_in_flight
        )

    def enter(self, key_id: str) -> None:
        """Count a request; `leave` must follow.

        Raises:
            Refusal: 429, with the seconds to wait; nothing was counted.
        """
        if self._in_flight[key_id] >= self._concurrency:
            raise Refusal(
                429,
                "too_many_concurrent_requests",
                f"this key has {self._in_flight[key_id]} requests in flight, and the maximum is {self._concurrency}; "
                "wait for one to end",
                retry_after=1,
            )
        if self._buckets is not None and (wait := self._buckets.take(key_id)):
            raise Refusal(
                429,
                "too_many_a_second",
                f"this key may send {self._rate:g} requests per second; try again in {wait:.2g} seconds",
                retry_after=math.ceil(wait),
            )
        self._in_flight[key_id] += 1

    def hold(self, key_id: str, size: int) -> None:
        """Count body bytes of a request that has entered; `leave` releases them.

        Raises:
            Refusal: 429; nothing was counted.
        """
        if self._body_bytes is not None and self._held_bytes[key_id] + size > self._body_bytes:
            raise Refusal(
                429,
                "too_many_bytes",
                f"this key may have {self._body_bytes:,} body bytes in flight; wait for a request to end",
                retry_after=1,
            )
        self._held_bytes[key_id] += size

    def leave(self, key_id: str, held: int = 0) -> None:
        """Count a request as ended, and release the body bytes held for it."""
        self._held_bytes[key_id] -= held
        self._in_flight[key_id] -= 1
        if not self._in_flight[key_id]:
            del self._in_flight[key_id], self._held_bytes[key_id]
