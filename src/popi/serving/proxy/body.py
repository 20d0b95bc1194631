"""Bodies of requests: read whole where they are edited, passed on as they come where not."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable

from starlette.types import Receive

from popi.serving.proxy.refusals import Refusal

READABLE = ("", "identity", "gzip", "x-gzip", "deflate")


class ClientGone(Exception):
    """The client hung up."""


async def read_whole(receive: Receive, length: int | None, most: int, seconds: float) -> bytes:
    """The body of a request.

    Args:
        receive: of the ASGI call.
        length: what the client announced.
        most: the most bytes to take.
        seconds: the longest to wait.

    Raises:
        Refusal: 413, 408.
        ClientGone: it hung up before its body was through.
    """
    if length is not None and length > most:
        raise too_long(most)
    try:
        with _Within(seconds):
            chunk, more = await _next(receive)
            if not more:
                if len(chunk) > most:
                    raise too_long(most)
                return chunk
            chunks, size = [chunk], len(chunk)
            while more:
                if size > most:
                    raise too_long(most)
                chunk, more = await _next(receive)
                chunks.append(chunk)
                size += len(chunk)
    except TimeoutError:
        raise Refusal(408, "slow_body", f"the body of the request was not there within {seconds:g} seconds") from None
    if size > most:
        raise too_long(most)
    return b"".join(chunks)


async def pass_on(receive: Receive, most: int, done: Callable[[], None]) -> AsyncIterator[bytes]:
    """The body, piece by piece; `done` is called when all of it was read.

    Raises:
        Refusal: 413, once it is too long.
        ClientGone: it hung up before its body was through.
    """
    size, more = 0, True
    while more:
        chunk, more = await _next(receive)
        size += len(chunk)
        if size > most:
            raise too_long(most)
        if chunk:
            yield chunk
    done()


def unpacked(body: bytes, encoding: str, most: int) -> bytes | None:
    """A body without its content encoding, or None where it is not what the encoding says.

    Raises:
        Refusal: 413 where it grows too long; 415 for an encoding that can't be read here: ids in it would pass.
    """
    if encoding not in READABLE:
        raise Refusal(
            415, "content_encoding", "the gateway reads bodies in gzip and deflate only; send this one without"
        )
    if encoding in ("", "identity"):
        return body
    try:
        return _inflate(body, 47, most)  # gzip or zlib, whatever the head says
    except zlib.error:
        pass
    try:
        return _inflate(body, -15, most)  # deflate as some clients send it, without zlib's head
    except zlib.error:
        return None


def too_long(most: int) -> Refusal:
    """The refusal of a body of more than `most` bytes."""
    return Refusal(413, "body_too_long", f"the body of this request may have {most:,} bytes at most")


class _Within:
    """`asyncio.timeout` at a third of the price: every request pays it, though its body is almost always here already.

    Raises:
        TimeoutError: the block took longer.
    """

    __slots__ = ("_late", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._task, self._late = asyncio.current_task(), False
        self._timer = asyncio.get_running_loop().call_later(seconds, self._stop)

    def _stop(self) -> None:
        self._late = True
        if self._task is not None:
            self._task.cancel()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._timer.cancel()
        if self._late and self._task is not None and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise TimeoutError


def _inflate(body: bytes, bits: int, most: int) -> bytes:
    parts: list[bytes] = []
    room = most + 1
    while body:  # gzip files may be several in a row
        reader = zlib.decompressobj(bits)
        part = reader.decompress(body, room)
        room -= len(part)
        parts.append(part)
        if room <= 0:
            raise too_long(most)
        if not reader.eof:
            raise zlib.error("cut short")
        body = reader.unused_data
    return b"".join(parts)


async def _next(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)
