"""Bodies of requests: read whole where they are edited, passed on as they come where not."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from starlette.types import Message, Receive

from popi.serving.proxy.refusals import Refusal
from popi.serving.proxy.settings import ProxySettings

Run = Callable[..., Awaitable[Any]]
Hold = Callable[[int], None]
"""Called with the number of bytes that a request is about to keep in memory; may raise a Refusal."""

UTF8_MARK = b"\xef\xbb\xbf"
_BEFORE_JSON = b" \t\r\n\0\xff\xfe" + UTF8_MARK  # marks of UTF-16 and 32, and their halves of an ASCII letter
QUICK = 2**16
"""Bytes up to which a body is parsed and written in the event loop: 1 ms as clients write them, 8 ms at worst."""
FREE = 2**20
"""Bytes that a compressed body may inflate to whatever its ratio."""
STEP = 2**20
"""Bytes that are inflated in one go."""

T = TypeVar("T")


class ClientGone(Exception):
    """The client hung up."""


class Bodies:
    """Works on JSON bodies within the bounds of the settings.

    What may take long is done in one thread, so that the event loop goes on, and in turns: parsed, a body may take 50
    times its size in memory.
    """

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, "popi-bodies")
        self._slots = asyncio.Semaphore(2)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, size: int, key_id: str) -> AsyncIterator[Run]:
        """Around the work on one body, which goes through the function that is given. Of large bodies, one per key
        and two in all have their turn."""
        if size <= QUICK:
            yield _run
            return
        own = self._turns.setdefault(key_id, asyncio.Lock())
        async with own, self._slots:
            yield self._run_in_thread

    async def _run_in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def plain(self, raw: bytes, encoding: str, hold: Hold) -> bytes:
        """A body without its content encoding and byte order mark.

        Raises:
            Refusal: 400, 413 or 415, as `inflate`; whatever `hold` raises.
        """
        if encoding not in ("", "identity"):
            settings = self._settings
            most = min(settings.max_body_bytes, max(FREE, settings.max_body_ratio * len(raw)))
            steps, pieces = inflate(raw, encoding, most), []
            while (piece := await self._run_in_thread(next, steps, None)) is not None:
                hold(len(piece))
                pieces.append(piece)
            raw = b"".join(pieces)
        return raw.removeprefix(UTF8_MARK)


async def read_whole(
    receive: Receive, length: int | None, most: int, seconds: float, hold: Hold = lambda size: None
) -> bytes:
    """The body of a request.

    Args:
        receive: of the ASGI call.
        length: what the client announced.
        most: the most bytes to take.
        seconds: the longest to wait.
        hold: counts what is kept.

    Raises:
        Refusal: 413, 408; whatever `hold` raises.
        ClientGone: it hung up before its body was through.
    """
    if length is not None and length > most:
        raise too_long(most)
    chunks: list[bytes] = []
    size, more = 0, True
    async with _within(seconds):
        while more:
            chunk, more = _part(await receive())
            size += len(chunk)
            if size > most:
                raise too_long(most)
            hold(len(chunk))
            chunks.append(chunk)
    return b"".join(chunks)


async def peeked(receive: Receive, seconds: float) -> tuple[bytes, Receive]:
    """The beginning of a body, and a `receive` that gives all of it.

    Raises:
        Refusal: 408, it took longer than that.
        ClientGone: the client hung up before.
    """
    messages: list[Message] = []
    beginning, more = b"", True
    async with _within(seconds):
        while more and len(messages) < 8 and not beginning.strip(_BEFORE_JSON):
            messages.append(await receive())
            chunk, more = _part(messages[-1])
            beginning += chunk
    left = iter(messages)

    async def again() -> Message:
        return next(left, None) or await receive()

    return beginning, again


def may_be_json(beginning: bytes) -> bool:
    """Whether a body that begins so may be a JSON object, in whatever encoding."""
    return beginning.lstrip(_BEFORE_JSON)[:1] in (b"{", b"")


async def pass_on(receive: Receive, most: int, done: Callable[[], None]) -> AsyncIterator[bytes]:
    """The body, piece by piece; `done` is called when all of it was read.

    Raises:
        Refusal: 413, once it is too long.
        ClientGone: it hung up before its body was through.
    """
    size, more = 0, True
    while more:
        chunk, more = _part(await receive())
        size += len(chunk)
        if size > most:
            raise too_long(most)
        if chunk:
            yield chunk
    done()


def inflate(body: bytes, encoding: str, most: int) -> Iterator[bytes]:
    """A compressed body in pieces of `STEP` bytes at most.

    Raises:
        Refusal: 413 where it grows beyond `most`; 400 where it is not what the encoding says, cut short, or has bytes
            behind it; 415 for an encoding that can't be read here: ids in it would pass.
    """
    if encoding in ("gzip", "x-gzip"):
        window = 31
    elif encoding == "deflate":  # some clients leave out zlib's header
        window = 15 if len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0 else -15
    elif encoding in ("", "identity"):
        yield body
        return
    else:
        raise Refusal(415, "content_encoding", "the gateway reads gzip and deflate only; send the body without")
    reader, size, full = zlib.decompressobj(window), 0, True
    with suppress(zlib.error):
        while (body or full) and not reader.eof:
            piece = reader.decompress(body, STEP)
            body, full = reader.unconsumed_tail, len(piece) == STEP
            size += len(piece)
            if size > most:
                raise too_long(most)
            if piece:
                yield piece
    if not reader.eof or reader.unused_data:
        raise Refusal(400, "content_encoding", "the body is not one whole stream of what content-encoding says")


def too_long(most: int) -> Refusal:
    """The refusal of a body of more than `most` bytes."""
    return Refusal(413, "body_too_long", f"the body of this request may have {most:,} bytes at most")


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Refusal(408, "slow_body", f"the body of the request was not there within {seconds:g} seconds") from None


async def _run(work: Callable[..., T], *arguments: Any) -> T:
    return work(*arguments)


def _part(message: Message) -> tuple[bytes, bool]:
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)
