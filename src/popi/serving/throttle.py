"""How many wrong keys, links and cookies one client address may try."""

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
from popi.serving.proxy.limits import MOST_KEPT, Buckets
from popi.serving.settings import ServerSettings

T = TypeVar("T")
WRONG_AT_ONCE = 20
TARPIT_SECONDS = 1.0
"""How long a client waits for its 429: one that tries again at once takes less of the processor."""
CLIENT: ContextVar[str] = ContextVar("CLIENT", default="")
"""Address of the client whose request is being served."""


def network_of(host: str) -> str:
    """What counts as one client: an IPv4 address, or of IPv6 the /64 that a household or a machine is given."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return host
    return str(address.ipv4_mapped or ip_network((int(address) >> 64 << 64, 64)))


class Throttle:
    """Slows down clients that guess. A secret that was right before is not counted, so that it always works.

    Args:
        settings: how many wrong ones an address may try.
        clock: seconds that never go back.
    """

    def __init__(self, settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._wrong = Buckets(settings.wrong_keys_per_s, WRONG_AT_ONCE, clock)
        self._right: OrderedDict[str, None] = OrderedDict()
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def attempt(self, hashed: str, check: Callable[[], Awaitable[T | None]]) -> T | None:
        """What the check of a secret returns; if that is None, or the client broke it off, it counts as wrong.

        Args:
            hashed: names the secret.
            check: says what the secret stands for; None: it is wrong.

        Raises:
            AuthError: 429, too many were wrong just now.
        """
        if hashed in self._right:
            if (meaning := await check()) is None:
                self._right.pop(hashed, None)
            return meaning
        client = network_of(CLIENT.get())
        # As many at once as there are tokens: an app's server may bring many right keys at the same moment.
        async with self._turns.setdefault(client, asyncio.Semaphore(WRONG_AT_ONCE)):
            if not (wait := self._wrong.take(client)):
                return await self._new(client, hashed, check)
        await asyncio.sleep(TARPIT_SECONDS)
        message = "too many wrong keys, links or cookies came from this address; try again later"
        raise AuthError(message, status=429, retry_after=math.ceil(wait))

    async def _new(self, client: str, hashed: str, check: Callable[[], Awaitable[T | None]]) -> T | None:
        try:
            meaning = await check()
        except PopiError:  # the store's fault
            self._wrong.give_back(client)
            raise
        if meaning is not None:
            self._wrong.give_back(client)
            self._right[hashed] = None
            if len(self._right) > MOST_KEPT:
                self._right.popitem(last=False)
        return meaning
