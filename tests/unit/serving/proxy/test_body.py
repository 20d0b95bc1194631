"""Bodies: read whole, passed on, unpacked."""

import asyncio
import gzip
import random
import threading
import zlib
from functools import partial
from typing import Any

import pytest

from popi.serving.proxy.body import (
    CHUNK_BYTES,
    UTF8_BOM,
    Bodies,
    ClientGone,
    inflate,
    may_be_json,
    peek,
    read_whole,
    stream,
)
from popi.serving.proxy.refusals import Refusal
from popi.serving.proxy.settings import ProxySettings


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


def test_bytes_are_counted_as_they_come() -> None:
    held: list[int] = []
    assert asyncio.run(read_whole(receiving(b"ab", b"c"), None, 3, 1, held.append)) == b"abc"
    assert held == [2, 1]


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
        got = [piece async for piece in stream(receiving(b"ab", b"", b"cd"), most, lambda: done.append(1))]
        return got, done

    assert asyncio.run(collect(4)) == ([b"ab", b"cd"], [1])
    with pytest.raises(Refusal):
        asyncio.run(collect(3))


def test_the_beginning_of_a_body_and_then_all_of_it() -> None:
    async def look(*pieces: bytes) -> tuple[bytes, bytes]:
        beginning, receive = await peek(receiving(*pieces), 1)
        return beginning, await read_whole(receive, None, 10**6, 1)

    assert asyncio.run(look(b"", b" \n", b"\xef\xbb\xbf {", b"}")) == (b" \n\xef\xbb\xbf {", b" \n\xef\xbb\xbf {}")
    assert asyncio.run(look(b"")) == (b"", b"")
    blank, whole = asyncio.run(look(*[b" "] * 100, b"{}"))
    assert (blank, whole) == (b" " * 8, b" " * 100 + b"{}")
    with pytest.raises(ClientGone):
        asyncio.run(look(b" ", None))  # type: ignore[arg-type]


def test_what_may_be_json() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-le"):
        assert may_be_json(' {"user":"bob"}'.encode(encoding))
    assert may_be_json(b"") and may_be_json(b" " * 8)
    for other in (b"--boundary", b"[1]", b'"a"', b"user=bob", b"RIFF", b"\x00\x00\x00 ftyp"):
        assert not may_be_json(other)


gzipped = partial(gzip.compress, mtime=0)  # a test's name must be the same in every worker
RAW = b'{"a": 1}' * 50
DEFLATE = zlib.compressobj(wbits=-15)
BARE = DEFLATE.compress(RAW) + DEFLATE.flush()


def inflated(packed: bytes, encoding: str, most: int) -> bytes:
    return b"".join(inflate(packed, encoding, most))


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("", RAW),
        ("identity", RAW),
        ("gzip", gzipped(RAW)),
        ("x-gzip", gzipped(RAW)),
        ("deflate", zlib.compress(RAW)),
        ("deflate", BARE),
    ],
)
def test_inflated(encoding: str, packed: bytes) -> None:
    assert inflated(packed, encoding, len(RAW)) == RAW


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 5])
@pytest.mark.parametrize("noise", [False, True])
def test_inflated_in_steps(size: int, noise: bool) -> None:
    raw = random.Random(1).randbytes(size) if noise else b"x" * size
    for packed, encoding in ((gzipped(raw), "gzip"), (zlib.compress(raw), "deflate")):
        pieces = list(inflate(packed, encoding, size))
        assert b"".join(pieces) == raw and all(0 < len(piece) <= CHUNK_BYTES for piece in pieces)


@pytest.mark.parametrize(
    ("packed", "encoding", "status"),
    [
        (b"no gzip", "gzip", 400),
        (b"", "gzip", 400),
        (gzipped(RAW)[:-9], "gzip", 400),
        (gzipped(RAW) + b"x", "gzip", 400),
        (gzipped(RAW) + gzipped(RAW), "gzip", 400),
        (gzipped(RAW) + b"x" * 10**6, "gzip", 400),
        (gzipped(RAW)[:-8] + b"\0" * 8, "gzip", 400),  # another checksum
        (zlib.compress(RAW), "gzip", 400),
        (gzipped(b" " * 10_000_000), "gzip", 413),
        (RAW, "br", 415),
        (RAW, "zstd", 415),
        (gzipped(gzipped(RAW)), "gzip, gzip", 415),
    ],
)
def test_what_can_not_be_inflated(packed: bytes, encoding: str, status: int) -> None:
    with pytest.raises(Refusal) as refused:
        inflated(packed, encoding, 9999)
    assert refused.value.status == status


def bodies(**settings: Any) -> Bodies:
    return Bodies(ProxySettings(upstream="http://up", **settings))


def test_compressed_bodies_within_their_bounds() -> None:
    held: list[int] = []

    async def plain(raw: bytes, encoding: str = "gzip") -> bytes:
        return await bodies(max_body_ratio=3).plain(raw, encoding, held.append)

    assert asyncio.run(plain(UTF8_BOM + b"{}", "")) == b"{}" and held == []
    assert asyncio.run(plain(gzipped(UTF8_BOM + RAW))) == RAW and sum(held) == len(RAW) + 3
    noise = random.Random(1).randbytes(2 * CHUNK_BYTES)
    held.clear()
    assert asyncio.run(plain(gzipped(noise))) == noise and sum(held) == 2 * CHUNK_BYTES
    assert asyncio.run(plain(gzipped(b" " * CHUNK_BYTES))) == b" " * CHUNK_BYTES  # as much is free
    with pytest.raises(Refusal) as refused:
        asyncio.run(plain(gzipped(b" " * (CHUNK_BYTES + 1))))
    assert refused.value.status == 413


def test_large_bodies_are_worked_on_in_turns() -> None:
    """One per key and two in all; small ones wait for nobody."""

    async def work() -> tuple[int, list[str]]:
        ours, under_way, most, done = bodies(), 0, 0, []

        async def one(key: str, size: int) -> None:
            nonlocal under_way, most
            async with ours.turn(size, key) as run:
                under_way += 1
                most = max(most, under_way)
                in_loop = await run(threading.current_thread) is threading.main_thread()
                assert in_loop == (size < 100)
                under_way -= 1
                done.append(key)

        await asyncio.gather(*(one("greedy", 10**6) for _ in range(5)), one("b", 10**6), one("c", 10**6), one("d", 5))
        assert not ours._turns
        return most, done

    most, done = asyncio.run(work())
    assert most == 3 and done[0] == "d" and {"b", "c"} <= set(done[:5])
