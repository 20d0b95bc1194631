"""How many wrong keys, links and cookies one client address may try."""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from ipaddress import ip_address, ip_network
from typing import TypeVar

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

    async def attempt(self, hashed: str, check: Callable[[], Awaitable[T | None]]) -> T | None:
        """What the check of a secret returns; if that is None, or the client broke it off, it counts as wrong.

        Args:
            hashed: names the secret.
            check: says what the secret stands for; None: it is wrong.

        Raises:
            AuthError: 429, too many were wrong just now.
        """
        client, counted = network_of(CLIENT.get()), hashed not in self._right
        if counted and (wait := self._wrong.take(client)):
            await asyncio.sleep(TARPIT_SECONDS)
            message = "too many wrong keys, links or cookies came from this address; try again later"
            raise AuthError(message, status=429, retry_after=math.ceil(wait))
        try:
            meaning = await check()
        except PopiError:  # the store's fault
            if counted:
                self._wrong.give_back(client)
            raise
        if meaning is None:
            self._right.pop(hashed, None)
        elif counted:
            self._wrong.give_back(client)
            self._right[hashed] = None
            if len(self._right) > MOST_KEPT:
                self._right.popitem(last=False)
        return meaning
