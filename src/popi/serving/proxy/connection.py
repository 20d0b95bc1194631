"""One connection to the upstream, and the answers that come on it, one at a time.

Answers are parsed by httptools (llhttp, Node's parser) and handed on as they arrive: no header table, no decoding, no
task and no timer of their own.
"""

import asyncio
from collections.abc import Callable

import httptools

from popi.serving.proxy.headers import Raw

MOST_HEADERS = 1024
"""Most headers of an answer."""
MOST_HEAD = 2**20
"""Most bytes of an answer's head, with those that announce it; and of what comes behind its body."""
MOST_WAITING = 2**18
"""So many bytes of an answer may wait for the client, then the upstream is read no further."""


class UpstreamFault(Exception):
    """What the upstream did wrong, to be read behind "the upstream"; without a word of its own."""


class Unreachable(UpstreamFault):
    """There is no connection to it."""


class Silent(UpstreamFault):
    """It took longer than it may."""


class Broken(UpstreamFault):
    """It closed the connection before its answer's end, or sent what is no HTTP."""


class Answer:
    """An answer, as it arrives.

    Attributes:
        status: of HTTP; 0 until `head` has returned.
        headers: as they came.
    """

    __slots__ = ("_connection", "_ended", "_fault", "_pieces", "_size", "_waiter", "headers", "status")

    def __init__(self, connection: "Connection") -> None:
        self._connection: Connection | None = connection
        self.status, self.headers = 0, list[Raw]()
        self._pieces: list[bytes] = []
        self._size, self._ended = 0, False
        self._fault: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def head(self) -> None:
        """Wait for status and headers.

        Raises:
            UpstreamFault: none came.
            Exception: what the pieces of the request's body raised.
        """
        while not self.status:
            if self._fault is not None:
                raise self._fault
            await self._more()

    async def read(self) -> tuple[bytes, bool]:
        """What has arrived of the body, at least a byte unless it is the end; and whether more may come.

        Raises:
            UpstreamFault: it ended too early, or fell silent. All that had come was given out.
            Exception: what the pieces of the request's body raised.
        """
        while not self._pieces and not self._ended:
            if self._fault is not None:
                raise self._fault
            await self._more()
        pieces = self._pieces
        piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces, self._size = [], 0
        if self._connection is not None:
            self._connection.resume()
        return piece, not self._ended

    def close(self) -> None:
        """Nobody waits for the rest: its connection ends, unless the answer has."""
        if self._connection is not None:
            self._connection.abort()

    async def _more(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def wake(self) -> None:
        """Something has changed for who waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fed(self, piece: bytes) -> bool:
        """A piece of the body is here; whether too much waits for the client."""
        self._pieces.append(piece)
        self._size += len(piece)
        self.wake()
        return self._size > MOST_WAITING

    def end(self, fault: Exception | None = None) -> None:
        """All of it is here, or all that will be."""
        self._connection, self._fault, self._ended = None, fault, fault is None
        self.wake()


class Connection(asyncio.Protocol):
    """Carries one request and its answer at a time.

    Args:
        silence_s: seconds that the upstream may keep silent while it is waited for.
        free: called when an answer has ended and the next request may be sent.
        lost: called when it is closed.

    Attributes:
        transport: its bytes.
    """

    transport: asyncio.Transport

    def __init__(
        self, silence_s: float, free: Callable[["Connection"], None], lost: Callable[["Connection"], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._silence, self._free, self._lost = silence_s, free, lost
        self._parser = httptools.HttpResponseParser(self)
        # As browsers and other clients read what old servers send.
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True)
        self._answer: Answer | None = None
        self._upload: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._unsent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._reading = True

    def send(self, request: bytes, without_body: bool = False) -> Answer:
        """Send a request: all of it, or its head.

        Args:
            request: the bytes.
            without_body: its answer has none, whatever its head says (HEAD).
        """
        self._answer = answer = Answer(self)
        self._raw: list[Raw] = answer.headers
        self._head_bytes, self._announced, self._without_body, self._reusable = 0, False, without_body, False
        self._heard = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._silence, self._look)
        self.transport.write(request)
        return answer

    def upload(self, task: "asyncio.Task[None]") -> None:
        """A task writes the rest of the request; while it waits for more to write, silence does not count."""
        self._upload = task
        task.add_done_callback(self._uploaded)

    async def write(self, piece: bytes) -> None:
        """Write a piece of the request's body, and wait until there is room for the next."""
        self.transport.write(piece)
        if self._writable is not None:
            await self._writable

    def resume(self) -> None:
        """Read on: what waited has been taken."""
        if not self._reading:
            self._reading = True
            self._heard = self._loop.time()
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close it, whatever is under way."""
        self.transport.abort()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is no subclass
        if transport.get_extra_info("sslcontext") is not None:
            # Else uvloop reads on beneath a pause, and loses what it has read if the upstream then closes.
            self.transport.set_read_buffer_limits(1, 0)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:  # nobody asked for anything
            return self.abort()
        self._heard = self._loop.time()
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            ours = error.__context__
            return self._fail(ours if isinstance(ours, Broken) else Broken("sent no HTTP"))
        if self._head_bytes > MOST_HEAD and self._answer is not None:
            self._fail(Broken("sent too long a head"))

    def eof_received(self) -> None:
        answer = self._answer
        if answer is not None and answer.status and not _framed(answer.headers):
            self._end()  # this is how such an answer ends; a reset is none, nor is our own abort
        else:
            self._fail(Broken("closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        self._fail(Broken("closed the connection"))
        self._lost(self)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()
        self._heard, self._unsent = self._loop.time(), self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable, self._heard = None, self._loop.time()

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._answer is None:
            raise Broken("sent an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._raw.append((name, value))  # behind a body they are trailers, and go nowhere
        if len(self._raw) > MOST_HEADERS:
            raise Broken("sent too many headers")

    def on_headers_complete(self) -> None:
        answer, status = self._answer, self._parser.get_status_code()
        if answer is None or status == 101 or not 100 <= status < 600:
            raise Broken("sent an answer that nobody asked for")
        if status < 200:  # it only announces the answer
            self._announced = True
            self._raw.clear()
            return
        self._raw = []
        answer.status, self._reusable = status, self._parser.should_keep_alive()
        if self._without_body:
            self._reusable = False  # the parser would wait for the body
            self._end()
        else:
            answer.wake()

    def on_body(self, body: bytes) -> None:
        answer, self._head_bytes = self._answer, 0
        if answer is None:
            return
        if not answer.status:
            raise Broken("sent a body with what only announces an answer")
        if answer.fed(body) and self._reading:
            self._reading = False
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._announced:
            self._announced = False
        else:
            self._end()

    # How it ends.

    def _end(self) -> None:
        """The answer is whole."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.end()
            self.resume()
            if self._upload is not None and self._upload.done():
                self._uploaded(self._upload)  # the loop is yet to call it
            sent = self._upload is None and self._writable is None
            if self._reusable and sent and not self.transport.is_closing():
                self._free(self)
            else:
                self._stop()

    def _fail(self, fault: Exception) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.end(fault)
        self._stop()

    def _stop(self) -> None:
        if self._upload is not None:
            self._upload.cancel()
        self.transport.abort()

    def _uploaded(self, task: "asyncio.Task[None]") -> None:
        if self._upload is not task:
            return
        self._upload, self._heard = None, self._loop.time()
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error if isinstance(error, Exception) else Broken("was sent half a request"))

    def _look(self) -> None:
        """Whether the upstream has been silent for too long; else, look again when it will have been."""
        self._timer = None
        if self._answer is None:
            return
        now = self._loop.time()
        if self._writable is None:
            heard = self._upload is not None  # the upstream waits as well
        else:
            before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
            heard = self._unsent < before  # it takes what is sent
        if heard or not self._reading:
            self._heard = now
        if (left := self._heard + self._silence - now) > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._fail(Silent(f"sent nothing within {self._silence:g} seconds"))


def _framed(headers: list[Raw]) -> bool:
    """Whether an answer says where it ends; the others end with their connection."""
    return any(
        name.lower() == b"content-length" or (name.lower() == b"transfer-encoding" and b"chunked" in value.lower())
        for name, value in headers
    )
