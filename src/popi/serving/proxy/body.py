"""Request bodies: read whole if they are edited, streamed if not."""

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
"""Called with the number of bytes that a request is about to hold in memory; may raise a Refusal."""

UTF8_BOM = b"\xef\xbb\xbf"
_BEFORE_JSON = b" \t\r\n\0\xff\xfe" + UTF8_BOM  # BOMs of UTF-16 and UTF-32, and their padding of ASCII letters
MAX_INLINE_BYTES = 2**16
"""Bodies up to this size are parsed and written in the event loop: 1 ms for typical bodies, 8 ms at worst."""
RATIO_EXEMPT_BYTES = 2**20
"""Bytes that a compressed body may inflate to, whatever its ratio."""
CHUNK_BYTES = 2**20
"""Bytes inflated per step."""

T = TypeVar("T")


class ClientGone(Exception):
    """The client hung up."""


class Bodies:
    """Processes JSON bodies within the limits of the settings.

    Large bodies are processed in one thread, to keep the event loop free, and take turns: a parsed body may take 50
    times its size in memory.
    """

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, "popi-bodies")
        self._slots = asyncio.Semaphore(2)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, size: int, key_id: str) -> AsyncIterator[Run]:
        """Wait for a turn to process one body; run the work through the function that this yields. Large bodies are
        limited to one per key and two overall."""
        if size <= MAX_INLINE_BYTES:
            yield _run
            return
        key_lock = self._turns.setdefault(key_id, asyncio.Lock())
        async with key_lock, self._slots:
            yield self._run_in_thread

    async def _run_in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def plain(self, raw: bytes, encoding: str, hold: Hold) -> bytes:
        """A body without its content encoding and byte order mark.

        Raises:
            Refusal: 400, 413 or 415, as in `inflate`; and whatever `hold` raises.
        """
        if encoding not in ("", "identity"):
            settings = self._settings
            max_bytes = min(settings.max_body_bytes, max(RATIO_EXEMPT_BYTES, settings.max_body_ratio * len(raw)))
            inflated, pieces = inflate(raw, encoding, max_bytes), []
            while (piece := await self._run_in_thread(next, inflated, None)) is not None:
                hold(len(piece))
                pieces.append(piece)
            raw = b"".join(pieces)
        return raw.removeprefix(UTF8_BOM)


async def read_whole(
    receive: Receive, length: int | None, max_bytes: int, seconds: float, hold: Hold = lambda size: None
) -> bytes:
    """The body of a request.

    Args:
        receive: the ASGI call's.
        length: the announced content length, if any.
        max_bytes: maximum length.
        seconds: maximum time to wait.
        hold: counts the bytes read.

    Raises:
        Refusal: 413 or 408; and whatever `hold` raises.
        ClientGone: the client hung up before the body was complete.
    """
    if length is not None and length > max_bytes:
        raise too_long(max_bytes)
    chunks: list[bytes] = []
    size, more = 0, True
    async with _within(seconds):
        while more:
            chunk, more = _part(await receive())
            size += len(chunk)
            if size > max_bytes:
                raise too_long(max_bytes)
            hold(len(chunk))
            chunks.append(chunk)
    return b"".join(chunks)


async def peek(receive: Receive, seconds: float) -> tuple[bytes, Receive]:
    """The beginning of a body, and a `receive` that replays it from the start.

    Raises:
        Refusal: 408, it took longer than `seconds`.
        ClientGone: the client hung up first.
    """
    messages: list[Message] = []
    beginning, more = b"", True
    async with _within(seconds):
        while more and len(messages) < 8 and not beginning.strip(_BEFORE_JSON):
            messages.append(await receive())
            chunk, more = _part(messages[-1])
            beginning += chunk
    peeked = iter(messages)

    async def replay() -> Message:
        return next(peeked, None) or await receive()

    return beginning, replay


def may_be_json(beginning: bytes) -> bool:
    """Whether a body with this beginning may be a JSON object, in any encoding."""
    return beginning.lstrip(_BEFORE_JSON)[:1] in (b"{", b"")


async def stream(receive: Receive, max_bytes: int, done: Callable[[], None]) -> AsyncIterator[bytes]:
    """The body, piece by piece; `done` is called once all of it has been read.

    Raises:
        Refusal: 413, as soon as it is too long.
        ClientGone: the client hung up before the body was complete.
    """
    size, more = 0, True
    while more:
        chunk, more = _part(await receive())
        size += len(chunk)
        if size > max_bytes:
            raise too_long(max_bytes)
        if chunk:
            yield chunk
    done()


def inflate(body: bytes, encoding: str, max_bytes: int) -> Iterator[bytes]:
    """Decompress a body, in pieces of at most `CHUNK_BYTES`.

    Raises:
        Refusal: 413 if it grows beyond `max_bytes`; 400 if it doesn't match its encoding, is truncated, or has trailing
            bytes; 415 for an unsupported encoding, since user ids in it would slip through.
    """
    if encoding in ("gzip", "x-gzip"):
        window = 31
    elif encoding == "deflate":  # some clients omit zlib's header
        window = 15 if len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0 else -15
    elif encoding in ("", "identity"):
        yield body
        return
    else:
        raise Refusal(415, "content_encoding", "the gateway reads only gzip and deflate; send the body uncompressed")
    reader, size, full = zlib.decompressobj(window), 0, True
    with suppress(zlib.error):
        while (body or full) and not reader.eof:
            piece = reader.decompress(body, CHUNK_BYTES)
            body, full = reader.unconsumed_tail, len(piece) == CHUNK_BYTES
            size += len(piece)
            if size > max_bytes:
                raise too_long(max_bytes)
            if piece:
                yield piece
    if not reader.eof or reader.unused_data:
        raise Refusal(
            400, "content_encoding", "the body is not one complete stream in the encoding that content-encoding names"
        )


def too_long(max_bytes: int) -> Refusal:
    """The refusal of a body longer than `max_bytes`."""
    return Refusal(413, "body_too_long", f"the body of this request may have at most {max_bytes:,} bytes")


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Refusal(408, "slow_body", f"the body of the request did not arrive within {seconds:g} seconds") from None


async def _run(work: Callable[..., T], *arguments: Any) -> T:
    return work(*arguments)


def _part(message: Message) -> tuple[bytes, bool]:
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)
