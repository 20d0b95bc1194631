"""One JSON line per request. It holds nothing that a user wrote, and no user id, hashed or not."""

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
    """What is known of one request, filled in on its way.

    Attributes:
        route: `chat`, `responses`, `messages`, `count` (of tokens), `models` or `other`; never the path, which may hold
            an id.
        method: of HTTP.
        status: of the answer; 499 where the client hung up before there was one.
        key_id: the key's public id.
        tenant: of the key.
        upstream: the name of the upstream that it went to; None of none, or of several that were asked for models.
        personalized: the outcome; None on paths that are passed on untouched.
        version: of the summary that was applied.
        reason: why a summary was not applied, or a request not answered.
        before_ms: until it went upstream.
        upstream_ms: from there until the upstream's headers were here.
        total_ms: until the last byte.
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
    before_ms: float | None = None
    upstream_ms: float | None = None
    total_ms: float = 0.0


def log(record: Record) -> None:
    """Write a record, if anybody listens."""
    if LOGGER.isEnabledFor(logging.INFO):
        LOGGER.info("request", extra={"fields": vars(record)})


def log_fault(what: str, error: BaseException) -> None:
    """A fault of our own: what kind and where, without its message, which may quote a user."""
    trace, place = error.__traceback__, None
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    LOGGER.error(what, extra={"fields": {"error": type(error).__name__, "at": place}})


class JsonLines(logging.Formatter):
    """A log record as one line of JSON: time, level, event, and what `extra={"fields": …}` gave, without nulls."""

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
    """Writes to stderr, whatever that is now. A line that can't be written is lost: what logging would print in its
    place has the messages of exceptions in it, which may quote a user."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def on_stderr() -> Iterator[None]:
    """Show the gateway's log on stderr while a short command runs; once, also where it goes there already."""
    before, level, propagates = list(LOGGER.handlers), LOGGER.level, LOGGER.propagate
    to_stderr()
    LOGGER.propagate = propagates
    try:
        yield
    finally:
        LOGGER.handlers[:] = before
        LOGGER.setLevel(level)


def to_stderr(level: int = logging.INFO) -> None:
    """Send the gateway's log to stderr as lines of JSON. A second call adds no second handler."""
    LOGGER.setLevel(level)
    LOGGER.propagate = False
    if not any(isinstance(handler, _ToStderr) for handler in LOGGER.handlers):
        handler = _ToStderr()
        handler.setFormatter(JsonLines())
        LOGGER.addHandler(handler)
