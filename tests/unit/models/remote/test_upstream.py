"""Asking a server, and what happens when it does not answer well: real sockets, a server of our own."""

import asyncio
import gzip
import logging
import time
import traceback
from email.utils import formatdate
from typing import Any

import pytest
from fake_upstream import KEY, USAGE, FakeUpstream, content, cut, drip, hang, status

from popi.config.http import HttpConfig
from popi.errors import BatchError, ConfigError, PopiError, UpstreamError
from popi.models.backend import Reply, estimate_tokens
from popi.models.remote.api import ApiModel
from popi.models.remote.batch import GIVE_UP
from popi.models.remote.key import checked_url
from popi.models.remote.retries import Retries, retry_after
from popi.models.remote.usage import Prices, Usage

pytestmark = pytest.mark.timed

QUICK = Retries(limit=3, base_s=0.001)
HELLO = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]


def connect(upstream: FakeUpstream, protocol: str = "openai", **settings: Any) -> ApiModel:
    return ApiModel.connect(f"{upstream.url}/v1", "some-model", protocol, **{"retries": QUICK} | settings)


def ask(model: ApiModel, n: int = 1) -> list[Reply | PopiError]:
    return model.chat_many([HELLO] * n, max_tokens=7, temperature=0.5)


def fails(model: ApiModel) -> UpstreamError:
    (result,) = ask(model)
    assert isinstance(result, UpstreamError)
    return result


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_each_protocol_is_spoken_as_its_servers_want_it(upstream: FakeUpstream, protocol: str) -> None:
    upstream.wants_key = True
    model = connect(upstream, protocol)
    assert ask(model) == [Reply("likes short answers.", USAGE[1])]
    (request,) = upstream.received
    fields = {"model": "some-model", "max_tokens": 7, "temperature": 0.5}
    if protocol == "openai":
        assert request.path == "/v1/chat/completions"
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        assert request.body == fields | {"messages": HELLO}
    else:
        assert request.path == "/v1/messages"
        assert (request.headers["x-api-key"], request.headers["anthropic-version"]) == (KEY, "2023-06-01")
        assert request.body == fields | {"system": "be kind", "messages": HELLO[1:]}


def test_extra_fields_are_put_in_and_taken_out(upstream: FakeUpstream) -> None:
    ask(connect(upstream, extra={"max_tokens": None, "max_completion_tokens": 9, "temperature": None}))
    assert set(upstream.received[0].body) == {"model", "messages", "max_completion_tokens"}


@pytest.mark.parametrize("fault", [status(500), status(503), status(408), status(409), status(429), cut])
def test_what_may_pass_is_asked_again(upstream: FakeUpstream, fault: Any) -> None:
    upstream.faults = [fault, fault]
    model = connect(upstream)
    assert ask(model) == [Reply("likes short answers.", USAGE[1])]
    assert (model.usage.requests, model.usage.retries, len(upstream.received)) == (3, 2, 3)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 422, 302])
def test_what_will_not_pass_is_not_asked_again(upstream: FakeUpstream, code: int) -> None:
    upstream.faults = [status(code, "that is wrong", Location="http://127.0.0.1:1/")]
    error = fails(connect(upstream))
    assert (error.status, error.transient, len(upstream.received)) == (code, False, 1)
    assert str(code) in str(error) and "that is wrong" in str(error) and upstream.url in str(error)


def test_retry_after_seconds_are_waited(upstream: FakeUpstream) -> None:
    upstream.faults = [status(429, Retry_After="0.4")]
    ask(connect(upstream))
    first, second = upstream.received
    assert 0.4 <= second.time - first.time < 2


def test_retry_after_as_a_date_is_waited(upstream: FakeUpstream) -> None:
    now = 1_800_000_000  # a server whose clock is wrong: its date is read against its own
    upstream.faults = [status(503, Retry_After=formatdate(now + 1, usegmt=True), Date=formatdate(now, usegmt=True))]
    ask(connect(upstream))
    first, second = upstream.received
    assert 1 <= second.time - first.time < 3


def test_a_server_that_asks_for_too_long_a_wait_is_not_waited_for(upstream: FakeUpstream) -> None:
    upstream.faults = [status(429, Retry_After="3600")]
    error = fails(connect(upstream))
    assert "asks to wait 3600 seconds" in str(error)
    assert len(upstream.received) == 1


def test_retry_after_in_every_form() -> None:
    assert retry_after({"Retry-After": "7"}) == 7
    assert retry_after({"Retry-After": formatdate(0, usegmt=True)}) == 0  # long past
    for other in ({}, {"Retry-After": "soon"}, {"Retry-After": "-3"}, {"Retry-After": "nan"}, {"Retry-After": "inf"}):
        assert retry_after(other) is None
    soon = retry_after({"Retry-After": formatdate(time.time() + 30, usegmt=True)})
    assert soon is not None and 25 < soon <= 30


def test_backoff_doubles_with_jitter_and_never_undercuts_what_was_asked() -> None:
    policy = Retries(limit=4, base_s=1.0, max_wait_s=5.0)
    for retry, most in enumerate((1, 2, 4, 5)):
        waits = [policy.wait(retry) or 0 for _ in range(200)]
        assert most / 2 <= min(waits) < max(waits) <= most
    assert policy.wait(4) is None
    assert policy.wait(0, requested_wait=3.0) == 3.0
    assert policy.wait(0, requested_wait=5.1) is None


@pytest.mark.parametrize(
    ("fault", "limits", "words"),
    [
        (hang, {"http": HttpConfig(first_byte_timeout_s=0.1)}, "sent nothing within 0.1 seconds"),
        (hang, {"total_s": 0.1}, "no complete response within 0.1 seconds"),
        (drip, {"total_s": 0.2}, "no complete response within 0.2 seconds"),
        (cut, {}, "closed the connection"),
    ],
)
def test_time_limits_and_cut_connections_end_as_errors(
    upstream: FakeUpstream, fault: Any, limits: dict[str, Any], words: str
) -> None:
    upstream.faults = [fault] * 2
    start = time.monotonic()
    error = fails(connect(upstream, **limits, retries=Retries(limit=1, base_s=0.001)))
    assert words in str(error) and "gave up after 2 attempts" in str(error)
    assert time.monotonic() - start < 3
    assert len(upstream.received) == 2


def test_a_server_that_is_not_there() -> None:
    error = fails(ApiModel.connect("http://127.0.0.1:9", "m", retries=Retries(limit=1, base_s=0.001)))
    assert "can't be reached" in str(error)


@pytest.mark.parametrize(
    ("protocol", "body", "words"),
    [
        ("openai", b"<html>hello</html>", "not a JSON object"),
        ("openai", b'{"choices": [', "not a JSON object"),
        ("openai", b"[" * 100_000, "not a JSON object"),
        ("openai", b"[]", "not a JSON object"),
        ("openai", b'{"error": {"message": "no such model behind me"}}', "no such model behind me"),
        ("openai", b"{}", "choices[0].message.content"),
        ("openai", b'{"choices": []}', "choices[0].message.content"),
        ("openai", b'{"choices": [{"message": null}]}', "choices[0].message.content"),
        ("openai", b'{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}', "raise max_tokens"),
        ("openai", b'{"choices": [{"message": {"content": 3}}]}', "no text"),
        ("anthropic", b"{}", "`content`"),
        ("anthropic", b'{"content": [], "stop_reason": "refusal"}', "refusal"),
    ],
)
def test_answers_that_are_none_are_errors(upstream: FakeUpstream, protocol: str, body: bytes, words: str) -> None:
    upstream.faults = [content(body)]
    assert words in str(fails(connect(upstream, protocol)))
    assert len(upstream.received) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_without_end_is_given_up_for_its_own_user_alone(
    packed: bool, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("popi.models.remote.upstream.MAX_ANSWER_BYTES", 100_000)
    text = b'{"x": "' + b" " * 200_000
    headers = {"Content-Encoding": "gzip"} if packed else {}
    upstream.faults = [lambda handler: handler.send(200, gzip.compress(text) if packed else text, headers), None]
    first, second = ask(connect(upstream, concurrency=1), 2)
    assert "sent more than 100,000 bytes" in str(first) and isinstance(second, Reply) and len(upstream.received) == 2


def test_never_more_requests_under_way_than_allowed(upstream: FakeUpstream) -> None:
    upstream.delay = 0.03
    assert len(ask(connect(upstream, concurrency=3), 12)) == 12
    assert upstream.most_under_way == 3


def test_a_session_of_ones_own_is_bounded_too(upstream: FakeUpstream) -> None:
    upstream.delay = 0.03
    model = connect(upstream, concurrency=2)

    async def many() -> list[Reply]:
        async with model.upstream.session() as session:
            return await asyncio.gather(*(model.chat(session, HELLO, 5) for _ in range(6)))

    assert len(asyncio.run(many())) == 6
    assert upstream.most_under_way == 2


def test_inside_a_running_event_loop(upstream: FakeUpstream) -> None:
    async def notebook() -> list[Reply | PopiError]:
        return ask(connect(upstream))

    assert asyncio.run(notebook()) == [Reply("likes short answers.", USAGE[1])]


def test_a_batch_keeps_what_it_has(upstream: FakeUpstream) -> None:
    upstream.faults = [None, status(400, "too long"), None, status(422, "no")]
    told: dict[int, Any] = {}
    results = connect(upstream, concurrency=1).chat_many([HELLO] * 5, max_tokens=1, on_result=told.__setitem__)
    assert [isinstance(result, Reply) for result in results] == [True, False, True, False, True]
    assert "too long" in str(results[1])
    assert [told[index] for index in range(5)] == results


def test_a_key_that_is_refused_is_not_tried_a_thousand_times(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.wants_key = True
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    results = ask(connect(upstream, concurrency=2), 50)
    assert all(isinstance(result, UpstreamError) and result.status == 401 for result in results)
    assert len(upstream.received) <= 2


def test_a_server_that_is_down_is_given_up(upstream: FakeUpstream) -> None:
    upstream.faults = [status(503)] * 1000
    results = ask(connect(upstream, concurrency=4, retries=Retries(limit=0)), 100)
    assert len(results) == 100 and all(isinstance(result, UpstreamError) for result in results)
    assert GIVE_UP <= len(upstream.received) <= GIVE_UP + 3


def test_a_mistake_of_the_callers_own_ends_the_batch(upstream: FakeUpstream) -> None:
    def full_disk(index: int, result: Any) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        connect(upstream).chat_many([HELLO] * 20, max_tokens=1, on_result=full_disk)


def test_tokens_and_cost_are_the_servers_counts_at_the_users_prices(upstream: FakeUpstream) -> None:
    model = connect(upstream, prices=Prices(input=3.0, output=15.0))
    ask(model, 4)
    assert (model.usage.input_tokens, model.usage.output_tokens) == (400, 40)
    assert model.usage.cost == pytest.approx((400 * 3 + 40 * 15) / 1e6)
    assert str(model.usage) == "4 requests (0 retries), 400 tokens in, 40 tokens out, cost 0.001800"
    free = connect(upstream)
    ask(free)
    assert free.usage.cost is None and "cost" not in str(free.usage)


def test_replies_without_a_count_leave_the_cost_open(upstream: FakeUpstream) -> None:
    upstream.change = lambda answer: {"choices": answer["choices"]}
    model = connect(upstream, prices=Prices(1, 1))
    assert ask(model) == [Reply("likes short answers.", None)]
    assert (model.usage.uncounted, model.usage.cost) == (1, None)


def test_an_answer_without_text_is_paid_for_all_the_same(upstream: FakeUpstream) -> None:
    upstream.answer = lambda messages: " "
    model = connect(upstream, prices=Prices(1, 1))
    assert "no text" in str(fails(model))
    assert model.usage.input_tokens == 100


def test_hidden_reasoning_is_billed_but_not_part_of_the_text(upstream: FakeUpstream) -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 6}}
    upstream.change = lambda answer: answer | {"usage": answer["usage"] | details}
    model = connect(upstream)
    assert ask(model) == [Reply("likes short answers.", 4)]
    assert model.usage.output_tokens == 10


def test_input_from_anthropics_cache_counts(upstream: FakeUpstream) -> None:
    upstream.change = lambda answer: answer | {"usage": answer["usage"] | {"cache_read_input_tokens": 900}}
    model = connect(upstream, "anthropic")
    ask(model)
    assert model.usage.input_tokens == 1000


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
@pytest.mark.parametrize(
    "fault",
    [
        status(401, f"Incorrect API key provided: {KEY}"),
        status(500, f"Bearer {KEY}"),
        content(f"not JSON {KEY}".encode()),
        cut,
        hang,
    ],
)
def test_the_key_is_shown_nowhere(
    upstream: FakeUpstream, protocol: str, fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    upstream.faults = [fault] * 9
    model = connect(
        upstream, protocol, http=HttpConfig(first_byte_timeout_s=0.05), retries=Retries(limit=1, base_s=0.001)
    )
    error = fails(model)
    assert any(KEY in str(request.headers) for request in upstream.received)
    for shown in (
        caplog.text,
        str(error),
        repr(error),
        "".join(traceback.format_exception(error)),
        "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format()),
        str(BatchError([error])),
        repr(model),
        repr(vars(model)),
        repr(vars(model.upstream)),
        repr(model.usage),
    ):
        assert KEY not in shown


@pytest.mark.parametrize("key", ["sk-a b", "sk-a\nHost: evil", "sk-\u00e9"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ConfigError, match="MY_KEY") as error:
        ApiModel.connect("https://example.org/v1", "m", key_env="MY_KEY")
    assert key not in str(error.value)


def test_where_the_key_comes_from(upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "mine")
    ask(connect(upstream, key_env="MY_KEY"))
    assert upstream.received[-1].headers["Authorization"] == "Bearer mine"
    monkeypatch.delenv("OPENAI_API_KEY")
    ask(connect(upstream))
    assert "Authorization" not in upstream.received[-1].headers
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        connect(upstream, key_env="NO_SUCH_KEY")
    upstream.wants_key = True
    assert "key_env" in str(fails(connect(upstream)))


def test_a_vendors_key_does_not_cross_a_network_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    key = lambda url, **named: ApiModel.connect(url, "m", **named).upstream._key  # noqa: E731
    assert key("http://gpu7.example.org:8000/v1") is None
    assert key("http://gpu7.example.org:8000/v1", key_env="OPENAI_API_KEY") is not None
    assert key("https://example.org/v1") is not None
    assert key("http://localhost:8000/v1") is not None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("api.openai.com/v1", "https://"),
        ("ftp://example.org", "https://"),
        ("https://", "https://"),
        ("https://me:hunter2@example.org", "no user"),
        ("https://example.org/v1?key=hunter2", "no user"),
        ("https://example.org:99999", "not valid"),
    ],
)
def test_a_url_that_is_none_is_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        checked_url(url)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"protocol": "soap"}, "openai, anthropic"), ({"model": " "}, "empty"), ({"concurrency": 0}, "at least 1")],
)
def test_settings_that_are_wrong_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ApiModel.connect("https://example.org", **{"model": "m"} | settings)


def test_prices_are_numbers() -> None:
    for price in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="price"):
            Prices(1.0, price)
    assert Usage(Prices(0, 0)).cost == 0


def test_the_estimate_of_tokens_is_bytes_by_three() -> None:
    assert [estimate_tokens(text) for text in ("", "a", "abc", "abcd", "日本", "\ud800")] == [0, 1, 1, 2, 2, 1]
