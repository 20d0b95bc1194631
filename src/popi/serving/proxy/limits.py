"""How much one key may ask for: requests a second (a token bucket), requests at once, bytes of bodies at once.

In this process, for all that the key asks here: chats and profiles draw on one account.
"""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from popi.serving.proxy.refusals import Refusal
from popi.serving.proxy.settings import ProxySettings

MOST_KEPT = 10_000
"""Buckets remembered; beyond this, the one unused for longest is full again."""


class Buckets:
    """A token bucket per name.

    Args:
        rate: tokens that come back per second.
        burst: the most that a bucket holds.
        clock: seconds that never go back.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def take(self, name: str) -> float:
        """Take a token; returns 0, or the seconds until there is one to take."""
        now = self._clock()
        tokens, at = self._levels.pop(name, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        wait = max(0.0, (1 - tokens) / self._rate)
        self._levels[name] = (tokens if wait else tokens - 1, now)
        if len(self._levels) > MOST_KEPT:
            self._levels.popitem(last=False)
        return wait

    def give_back(self, name: str) -> None:
        """Undo a `take`."""
        if (level := self._levels.get(name)) is not None:
            self._levels[name] = (level[0] + 1, level[1])


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
        self._rate, self._concurrency, self._body_bytes = rate, concurrency, body_bytes
        self._buckets = Buckets(rate, burst, clock) if rate is not None else None
        self._under_way: Counter[str] = Counter()
        self._held: Counter[str] = Counter()

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
        if self._under_way[key_id] >= self._concurrency:
            raise Refusal(
                429,
                "too_many_at_once",
                f"this key has {self._under_way[key_id]} requests under way, and may have {self._concurrency}; "
                "wait for one to end",
                retry_after=1,
            )
        if self._buckets is not None and (wait := self._buckets.take(key_id)):
            raise Refusal(
                429,
                "too_many_a_second",
                f"this key may send {self._rate:g} requests a second; try again in {wait:.2g} seconds",
                retry_after=math.ceil(wait),
            )
        self._under_way[key_id] += 1

    def hold(self, key_id: str, size: int) -> None:
        """Count bytes of the body of a request that has entered; `leave` takes them back.

        Raises:
            Refusal: 429; nothing was counted.
        """
        if self._body_bytes is not None and self._held[key_id] + size > self._body_bytes:
            raise Refusal(
                429,
                "too_many_bytes",
                f"this key may have {self._body_bytes:,} bytes of bodies in flight; wait for a request to end",
                retry_after=1,
            )
        self._held[key_id] += size

    def leave(self, key_id: str, held: int = 0) -> None:
        """A request has ended, for which so many bytes were held."""
        self._held[key_id] -= held
        self._under_way[key_id] -= 1
        if not self._under_way[key_id]:
            del self._under_way[key_id], self._held[key_id]
