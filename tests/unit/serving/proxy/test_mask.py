"""An upstream that quotes the gateway's key: it is covered, wherever the pieces of the answer are cut."""

import pytest

from popi.serving.proxy.upstream import Mask

SECRET = b"sk-0123456789"
ANSWER = b'{"error": "wrong key: sk-0123456789, and again sk-0123456789sk-012"}'
COVERED = ANSWER.replace(SECRET, b"*" * len(SECRET))


def passed(pieces: list[bytes], secret: bytes = SECRET) -> bytes:
    mask = Mask(secret)
    return b"".join(mask(piece, n + 1 < len(pieces)) for n, piece in enumerate(pieces))


@pytest.mark.parametrize("size", [1, 2, 5, 12, 13, 14, 40, 1000])
def test_wherever_it_is_cut(size: int) -> None:
    pieces = [ANSWER[start : start + size] for start in range(0, len(ANSWER), size)]
    assert passed(pieces) == passed([*pieces, b""]) == COVERED
    assert len(COVERED) == len(ANSWER) and SECRET not in COVERED


def test_nothing_is_held_back_where_there_is_no_key() -> None:
    assert Mask(b"")(b"anything", True) == b"anything"
    assert passed([b""]) == b"" and passed([b"sk-", b"other"]) == b"sk-other"
