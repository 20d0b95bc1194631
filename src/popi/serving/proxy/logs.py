"""One JSON line per request, without users' texts and without user ids, hashed or not."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TextIO

LOGGER = logging.getLogger("popi.gateway")

Outcome = Literal["applied", "none", "off", "failed"]


@dataclass
class Record:
    """The log entry of one request, filled in as it is handled.

    Attributes:
        route: `chat`, `responses`, `messages`, `count` (of tokens), `models` or `other`; never the path, which may hold
            an id.
        method: the HTTP method.
        status: of the response; 499 if the client hung up before there was one.
        key_id: the key's public id.
        tenant: the key's tenant.
        upstream: the name of the upstream that it went to; None if it went to none, or to several for their models.
        personalized: the outcome; None on paths that are never personalised.
        version: the applied summary's version.
        reason: why no summary was applied or the request failed.
        before_upstream_ms: time until it was sent upstream.
        upstream_ms: time from then until the upstream's headers arrived.
        total_ms: time until the last byte.
    """

    route: str
    method: str
    status: int = 0
    key_id: str | None = None
    tenant: str | None = None
    upstream: str | None = None
    personalized: Outcome | None = None
    version: int | None = None
    reason: str | None = None
    before_upstream_ms: float | None = None
    upstream_ms: float | None = None
    total_ms: float = 0.0


def log(record: Record) -> None:
    """Log a record."""
    if LOGGER.isEnabledFor(logging.INFO):
        LOGGER.info("request", extra={"fields": vars(record)})


def log_fault(event: str, error: BaseException) -> None:
    """Log an error of our own: its type and place, without its message, which may quote a user."""
    trace, place = error.__traceback__, None
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    LOGGER.error(event, extra={"fields": {"error": type(error).__name__, "at": place}})


class JsonLines(logging.Formatter):
    """Formats a log record as one JSON line: time, level, event and the `fields` passed in `extra`, without nulls."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        for name, value in getattr(record, "fields", {}).items():
            if value is not None:
                line[name] = round(value, 3) if isinstance(value, float) else value
        return json.dumps(line)


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`. A line that can't be written is dropped: the traceback that logging would
    print instead may quote a user."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def on_stderr() -> Iterator[None]:
    """Send the gateway's log to stderr while a short command runs, without duplicating it if it goes there already."""
    before, level, propagates = list(LOGGER.handlers), LOGGER.level, LOGGER.propagate
    to_stderr()
    LOGGER.propagate = propagates
    try:
        yield
    finally:
        LOGGER.handlers[:] = before
        LOGGER.setLevel(level)


def to_stderr(level: int = logging.INFO) -> None:
    """Send the gateway's log to stderr as JSON lines. Calling it twice adds only one handler."""
    LOGGER.setLevel(level)
    LOGGER.propagate = False
    # Its pool reports connections that died with a traceback, which may quote rows. popi reports them itself.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    if not any(isinstance(handler, _ToStderr) for handler in LOGGER.handlers):
        handler = _ToStderr()
        handler.setFormatter(JsonLines())
        LOGGER.addHandler(handler)
