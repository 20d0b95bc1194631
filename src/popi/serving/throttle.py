"""How many wrong keys, links and cookies one client address may try."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from ipaddress import ip_address, ip_network

from popi.errors import AuthError
from popi.serving.proxy.limits import Buckets
from popi.serving.settings import ServerSettings

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
    """Slows down who guesses. What was right before is not asked about here, so that it always works.

    Args:
        settings: how many a second.
        clock: seconds that never go back.
    """

    def __init__(self, settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._wrong = Buckets(settings.wrong_keys_per_s, settings.wrong_keys_burst, clock)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around a check of something that may be wrong: counts it where the check raises a 401, or is broken off.

        Raises:
            AuthError: 429, too many were wrong just now.
        """
        client = network_of(CLIENT.get())
        if wait := self._wrong.take(client):
            message = "too many wrong keys, links or cookies came from your address; try again later"
            raise AuthError(message, status=429, retry_after=math.ceil(wait))
        try:
            yield
        except AuthError as error:
            if error.status != 401:
                self._wrong.give_back(client)
            raise
        self._wrong.give_back(client)
