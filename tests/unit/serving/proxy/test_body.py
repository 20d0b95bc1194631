"""Bodies: read whole, passed on, unpacked."""

import asyncio
import gzip
import zlib
from typing import Any

import pytest

from popi.serving.proxy.body import ClientGone, pass_on, read_whole, unpacked
from popi.serving.proxy.refusals import Refusal


def receiving(*pieces: bytes | None) -> Any:
    """An ASGI `receive` of these pieces; None hangs up, and after the last nothing comes."""
    left = list(pieces)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.sleep(60)
        piece = left.pop(0)
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    return receive


def test_pieces_are_put_together() -> None:
    assert asyncio.run(read_whole(receiving(b"ab", b"", b"c"), None, 3, 1)) == b"abc"
    assert asyncio.run(read_whole(receiving(b""), 0, 3, 1)) == b""


@pytest.mark.parametrize("pieces", [(b"abcd",), (b"ab", b"cd"), (b"ab", b"cd", b"ef", b"gh")])
def test_too_long(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(Refusal, match="3 bytes") as refused:
        asyncio.run(read_whole(receiving(*pieces), None, 3, 1))
    assert refused.value.status == 413


def test_announced_as_too_long_nothing_is_read() -> None:
    with pytest.raises(Refusal):
        asyncio.run(read_whole(None, 4, 3, 1))  # type: ignore[arg-type]


def test_slow_and_gone_clients() -> None:
    slow = receiving(b"a", b"b")

    async def stalling() -> Any:
        message = await slow()
        return message | {"more_body": True}

    with pytest.raises(Refusal) as refused:
        asyncio.run(read_whole(stalling, None, 10, 0.05))
    assert refused.value.status == 408
    with pytest.raises(ClientGone):
        asyncio.run(read_whole(receiving(b"a", None), None, 10, 1))


def test_passed_on_as_it_comes() -> None:
    async def collect(most: int) -> tuple[list[bytes], list[int]]:
        done: list[int] = []
        got = [piece async for piece in pass_on(receiving(b"ab", b"", b"cd"), most, lambda: done.append(1))]
        return got, done

    assert asyncio.run(collect(4)) == ([b"ab", b"cd"], [1])
    with pytest.raises(Refusal):
        asyncio.run(collect(3))


RAW = b'{"a": 1}' * 50
DEFLATE = zlib.compressobj(wbits=-15)
BARE = DEFLATE.compress(RAW) + DEFLATE.flush()


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("", RAW),
        ("identity", RAW),
        ("gzip", gzip.compress(RAW)),
        ("x-gzip", gzip.compress(RAW[:9]) + gzip.compress(RAW[9:])),
        ("deflate", zlib.compress(RAW)),
        ("deflate", BARE),
    ],
)
def test_unpacked(encoding: str, packed: bytes) -> None:
    assert unpacked(packed, encoding, len(RAW)) == RAW


def test_what_can_not_be_unpacked() -> None:
    assert unpacked(b"no gzip", "gzip", 99) is None
    assert unpacked(gzip.compress(RAW)[:-9], "gzip", 999) is None
    with pytest.raises(Refusal) as refused:
        unpacked(gzip.compress(b" " * 10_000_000), "gzip", 1000)
    assert refused.value.status == 413
    for encoding in ("br", "zstd", "gzip, gzip"):
        with pytest.raises(Refusal) as refused:
            unpacked(RAW, encoding, 9999)
        assert refused.value.status == 415
