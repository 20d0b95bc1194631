"""The token bucket and the count of requests under way, with a clock of our own."""

import pytest

from popi.serving.proxy import limits as module
from popi.serving.proxy.limits import Buckets, Limits
from popi.serving.proxy.refusals import Refusal


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rate_by_hand() -> None:
    """2 a second, burst 3: three at once, then one every half second."""
    clock = Clock()
    limits = Limits(2.0, 3, 100, clock)
    for _ in range(3):
        limits.enter("k")
    with pytest.raises(Refusal) as refused:
        limits.enter("k")
    assert (refused.value.status, refused.value.code, refused.value.retry_after) == (429, "too_many_a_second", 1)
    clock.now += 0.25
    with pytest.raises(Refusal):
        limits.enter("k")  # half a token
    clock.now += 0.25
    limits.enter("k")
    with pytest.raises(Refusal):
        limits.enter("k")
    limits.enter("another key")
    clock.now += 1000  # no more than the burst is saved up
    for _ in range(3):
        limits.enter("k")
    with pytest.raises(Refusal):
        limits.enter("k")


def test_buckets_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BUCKETS", 3)
    limits = Limits(1.0, 2, 100, Clock())
    for key in "aabcd":  # d drops a, the one unused for longest
        limits.enter(key)
    assert limits._buckets is not None and set(limits._buckets._levels) == set("bcd")
    for key in "aabcd":
        limits.leave(key)
    assert not limits._in_flight


def test_a_token_that_is_given_back_can_be_taken_again() -> None:
    clock = Clock()
    buckets = Buckets(0.5, 1, clock)
    assert buckets.take("a") == 0
    assert buckets.take("a") == 2
    buckets.refund("a")
    buckets.refund("nobody")
    assert [buckets.take("a"), buckets.take("a"), buckets.take("b")] == [0, 2, 0]
    for _ in range(3):
        buckets.refund("a")
    assert [buckets.take("a"), buckets.take("a")] == [0, 2]  # it never holds more than the burst


def test_retry_after_is_when_there_is_room() -> None:
    limits = Limits(0.1, 1, 100, Clock())
    limits.enter("k")
    with pytest.raises(Refusal) as refused:
        limits.enter("k")
    assert refused.value.retry_after == 10


def test_requests_at_once() -> None:
    limits = Limits(None, 1, 2)
    limits.enter("k")
    limits.enter("k")
    with pytest.raises(Refusal) as refused:
        limits.enter("k")
    assert (refused.value.status, refused.value.code) == (429, "too_many_concurrent_requests")
    limits.leave("k")
    limits.enter("k")
    for _ in range(2):
        limits.leave("k")
    limits.enter("k")
