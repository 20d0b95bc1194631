"""What an operator sees: metrics, logs, traces."""

import json
import logging
from typing import Any

import pytest
from unit.serving.proxy.recording import (
    ADMIN_KEY,
    APP_KEY,
    SUMMARY,
    RecordingUpstream,
    RunningGateway,
    running_gateway,
    until,
)

from popi.errors import ConfigError
from popi.serving.proxy.logs import JsonLines
from popi.serving.proxy.tracing import Tracing

CHAT = b'{"messages":[{"role":"user","content":"my own words"}],"user":"ann"}'


def test_metrics(upstream: RecordingUpstream) -> None:
    with running_gateway(upstream) as gateway:
        gateway.call(body=CHAT)
        gateway.call(body=CHAT, key=None)
        until(lambda: gateway.counted("popi_requests_in_flight") == 0)
        page = gateway.call("/metrics", method="GET", key=None)
    assert page.status == 200 and (page.header("content-type") or "").startswith("text/plain")
    text = page.body.decode()
    assert 'popi_requests_total{personalized="applied",route="chat",status="200",upstream="default"} 1.0' in text
    assert 'popi_requests_total{personalized="",route="chat",status="401",upstream=""} 1.0' in text
    assert 'popi_refusals_total{reason="not_authenticated"} 1.0' in text
    assert 'popi_before_upstream_seconds_count{route="chat"} 1.0' in text
    assert "popi_summary_lookup_seconds_count 1.0" in text
    for hidden in ("ann", "acme", "app1"):
        assert f'"{hidden}"' not in text


@pytest.mark.parametrize(("readers", "statuses"), [("admin", [401, 403, 200]), ("nobody", [404, 404, 404])])
def test_who_may_read_metrics(upstream: RecordingUpstream, readers: str, statuses: list[int]) -> None:
    with running_gateway(upstream, metrics_access=readers) as gateway:
        keys = (None, APP_KEY, ADMIN_KEY)
        assert [gateway.call("/metrics", method="GET", key=key).status for key in keys] == statuses


def test_logs_hold_no_text_and_no_id_of_a_user(gateway: RunningGateway, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "popi.gateway"):
        gateway.call(body=CHAT)
        gateway.summaries.fault = ValueError("my own words, by ann")
        gateway.call(body=CHAT, headers={"x-popi-user": "ann"})
        gateway.call("/v1/files/ann?user=ann", method="GET")
        until(lambda: sum(record.getMessage() == "request" for record in caplog.records) == 3)
    lines = [JsonLines().format(record) for record in caplog.records if record.name == "popi.gateway"]
    first, fault, failed, other = (json.loads(line) for line in lines)
    assert (first["route"], first["status"], first["personalized"], first["version"]) == ("chat", 200, "applied", 3)
    assert (first["key_id"], first["tenant"]) == ("app1", "acme")
    assert 0 < first["before_upstream_ms"] < first["total_ms"]
    assert (fault["error"], failed["personalized"], failed["reason"]) == ("ValueError", "failed", "store")
    assert other["route"] == "other"
    for hidden in ("ann", "my own words", SUMMARY):
        assert hidden not in "".join(lines)


def test_log_can_be_turned_off(upstream: RecordingUpstream, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "popi.gateway"), running_gateway(upstream, log_requests=False) as gateway:
        gateway.call(body=CHAT)
    assert [record for record in caplog.records if record.name == "popi.gateway"] == []


def test_tracing_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match="pip install 'popi\\[otel\\]'"):
        Tracing()


def test_spans_stand_between_the_clients_and_the_upstreams(upstream: RecordingUpstream) -> None:
    trace: Any = pytest.importorskip("opentelemetry.trace")
    sdk: Any = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    with running_gateway(upstream, otel=True) as gateway:
        parent = f"00-{'a' * 32}-{'b' * 16}-01"
        gateway.call(body=CHAT, headers={"traceparent": parent})
        until(lambda: len(exporter.get_finished_spans()) == 1)
    span = exporter.get_finished_spans()[0]
    assert span.name == "popi chat" and f"{span.context.trace_id:032x}" == "a" * 32
    assert f"{span.parent.span_id:016x}" == "b" * 16
    assert upstream.last.header("traceparent") == f"00-{'a' * 32}-{span.context.span_id:016x}-01"
    assert span.attributes["popi.personalized"] == "applied" and span.attributes["http.response.status_code"] == 200
    assert "ann" not in str(dict(span.attributes))
