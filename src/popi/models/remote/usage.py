"""Usage of a model API: requests, tokens and cost."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from popi.errors import ConfigError


@dataclass(frozen=True)
class Prices:
    """Prices per million tokens, in any one currency. popi has no built-in prices, since they change.

    Raises:
        ConfigError: if a price is negative or not a number.
    """

    input: float
    output: float

    def __post_init__(self) -> None:
        for name, price in (("input", self.input), ("output", self.output)):
            if not 0 <= price < float("inf"):
                raise ConfigError(f"the price per million {name} tokens must be a number of at least 0; got {price}")


@dataclass
class Usage:
    """Running totals of the requests to one upstream.

    Attributes:
        prices: prices of tokens; None if unknown.
        requests: requests sent, including retries.
        retries: requests sent again after a failure.
        input_tokens, output_tokens: as reported by the server.
        uncounted: replies that did not report their tokens.
    """

    prices: Prices | None = None
    requests: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    uncounted: int = 0

    def add(self, tokens: tuple[int, int] | None) -> None:
        """Count one reply with its (input, output) tokens, or None if not reported."""
        if tokens is None:
            self.uncounted += 1
        else:
            self.input_tokens += tokens[0]
            self.output_tokens += tokens[1]

    @property
    def cost(self) -> float | None:
        """Total cost in the prices' currency; None without prices, or if a reply did not report its tokens."""
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
    """Count the requests to models within the block, by this thread and the event loops that it runs. Tokens that a
    server does not report are estimated; retries are not counted as requests.
    """
    usage = Usage(prices)
    token = _meter.set(usage)
    try:
        yield usage
    finally:
        _meter.reset(token)


def meter() -> Usage:
    """The usage of the enclosing `metered` block; without one, an unused object."""
    return _meter.get() or Usage()


def token_count(value: object) -> int | None:
    """A token count reported by a server; None if it is not a valid count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
