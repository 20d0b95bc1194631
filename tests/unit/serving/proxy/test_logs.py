"""Lines of the log."""

import io
import json
import logging
import sys

import pytest

from popi.serving.proxy import logs
from popi.serving.proxy.logs import JsonLines, Record, log, log_fault, on_stderr, to_stderr


def line(record: logging.LogRecord) -> dict[str, object]:
    return dict(json.loads(JsonLines().format(record)))


def test_a_request_is_one_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "popi.gateway"):
        log(Record("chat", "POST", 200, "k1", "acme", "default", "applied", 3, total_ms=1.23456))
    written = line(caplog.records[-1])
    assert written.pop("time").endswith("Z")  # type: ignore[attr-defined]
    assert written == {
        "level": "info",
        "event": "request",
        "route": "chat",
        "method": "POST",
        "status": 200,
        "key_id": "k1",
        "tenant": "acme",
        "upstream": "default",
        "personalized": "applied",
        "version": 3,
        "total_ms": 1.235,
    }


def test_a_line_that_can_not_be_written_is_lost_and_quotes_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = list(logs.LOGGER.handlers)
    closed = io.StringIO()
    closed.close()
    try:
        to_stderr()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", closed)
            try:
                raise ValueError("the user wrote: my secret")
            except ValueError as error:
                log_fault("broken", error)
        log_fault("next", ValueError())  # stderr is as it was
    finally:
        logs.LOGGER.handlers, logs.LOGGER.propagate = handlers, True
    written = capsys.readouterr().err
    assert "secret" not in written and '"event": "next"' in written


def test_a_fault_says_what_and_where_and_not_its_words(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("the user wrote: my secret")
    except ValueError as error:
        log_fault("broken", error)
    written = line(caplog.records[-1])
    assert written["error"] == "ValueError" and str(written["at"]).startswith("test_logs.py:")
    assert "my secret" not in json.dumps(written)


def test_stderr_is_set_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = logging.getLogger("popi.gateway.test")
    monkeypatch.setattr(logs, "LOGGER", fresh)
    to_stderr()
    to_stderr()
    assert len(fresh.handlers) == 1 and fresh.level == logging.INFO


@pytest.mark.parametrize("already", [False, True])
def test_a_short_command_logs_each_line_once(already: bool, capsys: pytest.CaptureFixture[str]) -> None:
    logs.LOGGER.handlers[:] = []
    if already:
        to_stderr()
    handlers = list(logs.LOGGER.handlers)
    with on_stderr():
        log_fault("shown", ValueError())
    assert logs.LOGGER.handlers == handlers and capsys.readouterr().err.count('"event": "shown"') == 1
