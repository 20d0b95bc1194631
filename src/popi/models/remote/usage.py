"""What a model API was asked for and what that cost: requests, tokens, money."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from popi.errors import ConfigError


@dataclass(frozen=True)
class Prices:
    """Money per million tokens, in any one currency. popi knows no prices of its own: they change.

    Raises:
        ConfigError: a price is negative or not a number.
    """

    input: float
    output: float

    def __post_init__(self) -> None:
        for name, price in (("input", self.input), ("output", self.output)):
            if not 0 <= price < float("inf"):
                raise ConfigError(f"the price of a million {name} tokens must be a number from 0 on; got {price}")


@dataclass
class Usage:
    """A running count over everything asked of one upstream.

    Attributes:
        prices: what tokens cost; None where nobody said.
        requests: requests sent, retries among them.
        retries: requests sent again after a failure.
        input_tokens, output_tokens: as the server's replies count them.
        uncounted: replies that did not say how many tokens they took.
    """

    prices: Prices | None = None
    requests: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    uncounted: int = 0

    def add(self, tokens: tuple[int, int] | None) -> None:
        """Count one reply: its (input, output) tokens, None where it did not tell."""
        if tokens is None:
            self.uncounted += 1
        else:
            self.input_tokens += tokens[0]
            self.output_tokens += tokens[1]

    @property
    def cost(self) -> float | None:
        """Money spent, in the prices' currency; None without prices, or where a reply did not count its tokens."""
        if self.prices is None or self.uncounted:
            return None
        return (self.input_tokens * self.prices.input + self.output_tokens * self.prices.output) / 1e6

    def __str__(self) -> str:
        text = (
            f"{self.requests} requests ({self.retries} retries), "
            f"{self.input_tokens} tokens in, {self.output_tokens} tokens out"
        )
        if self.uncounted:
            text += f", {self.uncounted} replies without a count"
        return text + (f", cost {self.cost:.6f}" if self.cost is not None else "")


_meter: ContextVar[Usage | None] = ContextVar("meter", default=None)


@contextmanager
def metered(prices: Prices | None = None) -> Iterator[Usage]:
    """Count what is asked of models within the block, by this thread and the event loops that it runs. Tokens that a
    server does not report are estimated; a retry is no further request.
    """
    usage = Usage(prices)
    token = _meter.set(usage)
    try:
        yield usage
    finally:
        _meter.reset(token)


def meter() -> Usage:
    """The count of the enclosing `metered` block; without one, a count that nobody reads."""
    return _meter.get() or Usage()


def token_count(value: object) -> int | None:
    """A count as a server gave it; None where that is not a count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
