"""One request and its answer on their way."""

from starlette.types import Receive, Scope, Send

from popi.serving.interfaces import Tap
from popi.serving.proxy.disconnect import Watch
from popi.serving.proxy.headers import Raw, RequestHeaders
from popi.serving.proxy.inject import Api
from popi.serving.proxy.logs import Record
from popi.serving.proxy.refusals import Dialect, dialect_of
from popi.serving.proxy.upstream import Upstream


class Exchange:
    """What the steps of the gateway hand on.

    Attributes:
        scope, receive, send: of the ASGI call.
        path: with its escapes.
        api: whose request it is, where it is personalised.
        record: for the log.
        began: when it came, by `perf_counter`.
        watch: stops the work once the client is gone.
        waited: seconds that the key's check took.
        headers: the request's; there once they were read.
        upstream: where it goes; there once that was chosen.
        held: bytes of its body that were counted.
        started: the head of the answer is out.
        tap: looks on while the answer passes; None: nobody does.
    """

    __slots__ = (
        "api",
        "began",
        "headers",
        "held",
        "path",
        "receive",
        "record",
        "scope",
        "send",
        "started",
        "tap",
        "upstream",
        "waited",
        "watch",
    )

    headers: RequestHeaders
    upstream: Upstream

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, path: str, api: Api | None, record: Record, began: float
    ) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        self.path, self.api, self.record, self.began = path, api, record, began
        self.watch = Watch()
        self.held = 0
        self.started = False
        self.tap: Tap | None = None
        self.waited = 0.0

    @property
    def dialect(self) -> Dialect:
        """Which API the client speaks. Read off the request itself: it may be refused before its headers are read."""
        return dialect_of(self.path, self.scope["headers"])

    def watch_client(self) -> None:
        """Before a wait, once the request's body was read: stop when the client hangs up."""
        self.watch.begin(self.receive)

    async def start(self, status: int, headers: list[Raw]) -> None:
        """Send the head of the answer."""
        self.record.status, self.started = status, True
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
