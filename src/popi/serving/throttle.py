"""Limit the wrong keys, links and cookies that one client address may try."""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from ipaddress import ip_address, ip_network
from typing import TypeVar
from weakref import WeakValueDictionary

from popi.errors import AuthError, PopiError
from popi.serving.proxy.limits import MAX_BUCKETS, Buckets
from popi.serving.settings import ServerSettings

T = TypeVar("T")
WRONG_AT_ONCE = 20
TARPIT_SECONDS = 1.0
"""Delay before a 429, so that clients that retry immediately use less CPU."""
CLIENT: ContextVar[str] = ContextVar("CLIENT", default="")
"""The client address of the current request."""


def network_of(host: str) -> str:
    """The network that counts as one client: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return host
    return str(address.ipv4_mapped or ip_network((int(address) >> 64 << 64, 64)))


class Throttle:
    """Slows down clients that guess secrets. A secret that was valid before is exempt, so it always works.

    Args:
        settings: how many wrong secrets an address may try.
        clock: monotonic time in seconds.
    """

    def __init__(self, settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._wrong = Buckets(settings.wrong_keys_per_s, WRONG_AT_ONCE, clock)
        self._valid: OrderedDict[str, None] = OrderedDict()
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def attempt(self, hashed: str, check: Callable[[], Awaitable[T | None]]) -> T | None:
        """Check a secret and return the result. If that is None, or the client hung up, the secret counts as wrong.

        Args:
            hashed: identifies the secret.
            check: looks up what the secret stands for; None if it is wrong.

        Raises:
            AuthError: 429, too many recent secrets were wrong.
        """
        if hashed in self._valid:
            if (result := await check()) is None:
                self._valid.pop(hashed, None)
            return result
        client = network_of(CLIENT.get())
        # As many at once as there are tokens: an app's server may send many valid keys at the same time.
        async with self._turns.setdefault(client, asyncio.Semaphore(WRONG_AT_ONCE)):
            if not (wait := self._wrong.take(client)):
                return await self._first_attempt(client, hashed, check)
        await asyncio.sleep(TARPIT_SECONDS)
        message = "too many wrong keys, links or cookies from this address; try again later"
        raise AuthError(message, status=429, retry_after=math.ceil(wait))

    async def _first_attempt(self, client: str, hashed: str, check: Callable[[], Awaitable[T | None]]) -> T | None:
        try:
            result = await check()
        except PopiError:  # the store's fault
            self._wrong.refund(client)
            raise
        if result is not None:
            self._wrong.refund(client)
            self._valid[hashed] = None
            if len(self._valid) > MAX_BUCKETS:
                self._valid.popitem(last=False)
        return result
