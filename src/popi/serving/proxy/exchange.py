"""The state of one request while it is handled."""

from starlette.types import Receive, Scope, Send

from popi.serving.interfaces import Tap
from popi.serving.proxy.disconnect import Watch
from popi.serving.proxy.headers import Raw, RequestHeaders
from popi.serving.proxy.inject import Api
from popi.serving.proxy.logs import Record
from popi.serving.proxy.refusals import Dialect, dialect_of
from popi.serving.proxy.upstream import Upstream


class Exchange:
    """State that the gateway's steps share.

    Attributes:
        scope, receive, send: the ASGI call's.
        path: with its escapes.
        api: the API that the request belongs to; None if it is not personalised.
        record: the log entry.
        began: the arrival time, by `perf_counter`.
        watch: cancels the work if the client hangs up.
        waited: seconds spent checking the key.
        headers: the request's; set once they are read.
        upstream: the request's destination; set once it is chosen.
        held: body bytes counted towards the key's limit.
        started: whether the response's status and headers have been sent.
        tap: records the answer as it is streamed; None if it is not recorded.
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
        """The API that the client speaks, from the raw request: it may be refused before `headers` is set."""
        return dialect_of(self.path, self.scope["headers"])

    def watch_client(self) -> None:
        """Cancel the work if the client hangs up from now on. Call before a wait, once the body has been read."""
        self.watch.begin(self.receive)

    async def start(self, status: int, headers: list[Raw]) -> None:
        """Send the response's status and headers."""
        self.record.status, self.started = status, True
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
