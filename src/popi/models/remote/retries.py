"""When to retry a request to a model API, and how long to wait."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# Not the global generator, which training seeds: a slow server must not affect its draws.
_jitter = random.Random()


@dataclass(frozen=True)
class Retries:
    """Exponential backoff with jitter.

    Attributes:
        limit: maximum retries per request.
        base_s: seconds before the first retry; doubled for each further one, times a random factor in [½, 1].
        max_wait_s: maximum seconds to wait; if the server asks for more, there is no retry.
    """

    limit: int = 5
    base_s: float = 1.0
    max_wait_s: float = 60.0

    def wait(self, retry: int, requested_wait: float | None = None) -> float | None:
        """Seconds to wait before retry number `retry` (from 0).

        Args:
            retry: number of retries so far.
            requested_wait: the minimum seconds to wait, if the server specified it.

        Returns:
            None if there should be no retry: the maximum is reached, or the server asks for too long a wait.
        """
        if retry >= self.limit or (requested_wait is not None and requested_wait > self.max_wait_s):
            return None
        backoff = min(self.max_wait_s, self.base_s * 2**retry) * _jitter.uniform(0.5, 1)
        return max(backoff, requested_wait or 0.0)


def worth_a_retry(status: int) -> bool:
    """Whether an HTTP status indicates a temporary failure: 408, 409, 429, or 5xx."""
    return status in (408, 409, 429) or 500 <= status <= 599


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds in a reply's `Retry-After`: a number, or an HTTP-date (RFC 9110, 10.2.3). None if missing or invalid.

    A date is interpreted relative to the reply's own `Date`, in case the local clock is wrong.
    """
    value = headers.get("Retry-After", "").strip()
    try:
        seconds = float(value)
        return seconds if 0 <= seconds < float("inf") else None
    except ValueError:
        moment, now = _http_date(value), _http_date(headers.get("Date", ""))
        return None if moment is None else max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def _http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
