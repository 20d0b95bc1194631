"""One line of JSON a request. Nothing that a user wrote is in it, and no user's id, hashed or not."""

import json
import logging
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

LOGGER = logging.getLogger("popi.gateway")

Outcome = Literal["applied", "none", "off", "failed"]


@dataclass(slots=True)
class Record:
    """What is known of one request, filled in on its way.

    Attributes:
        route: `chat`, `responses`, `messages`, `models` or `other`; never the path, which may hold an id.
        method: of HTTP.
        status: of the answer; 499 where the client hung up before there was one.
        key_id: the key's public id.
        tenant: of the key.
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
    personalized: Outcome | None = None
    version: int | None = None
    reason: str | None = None
    before_ms: float | None = None
    upstream_ms: float | None = None
    total_ms: float = 0.0


def log(record: Record) -> None:
    """Write a record, if anybody listens."""
    if LOGGER.isEnabledFor(logging.INFO):
        # Not LOGGER.info: it would walk the stack for a file and a line that are always the same.
        line = logging.LogRecord(LOGGER.name, logging.INFO, __file__, 0, "request", None, None)
        line.fields = {name: getattr(record, name) for name in Record.__slots__}
        LOGGER.handle(line)


def log_fault(what: str, error: BaseException) -> None:
    """A fault of our own: what kind and where, without its message, which may quote a user."""
    trace, place = error.__traceback__, None
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    LOGGER.error(what, extra={"fields": {"error": type(error).__name__, "at": place}})


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        time_ = f"{_second(int(record.created))}.{int(record.msecs):03d}Z"
        line = f'{{"time": "{time_}", "level": "{record.levelname.lower()}", "event": {_string(record.getMessage())}'
        for name, value in getattr(record, "fields", {}).items():
            if value is not None:
                line += f', "{name}": {_json(value)}'
        return line + "}"


def _json(value: object) -> str:
    if type(value) is str:
        return _string(value)
    return json.dumps(round(value, 3)) if type(value) is float else json.dumps(value)


_string = lru_cache(maxsize=1024)(json.dumps)  # the same few again and again


@lru_cache(maxsize=2)
def _second(since_1970: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since_1970))


def to_stderr(level: int = logging.INFO) -> None:
    """Send the gateway's log to stderr as lines of JSON; again: no second time."""
    LOGGER.setLevel(level)
    LOGGER.propagate = False
    # Nothing of this is in our lines, and finding it out for each takes as long as writing it.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False
    if not any(isinstance(handler.formatter, JsonLines) for handler in LOGGER.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        LOGGER.addHandler(handler)
