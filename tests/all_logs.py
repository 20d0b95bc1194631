"""Everything that is logged anywhere in this process while a test runs, as text."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from popi.serving.proxy.logs import JsonLines

LEVELS = {
    "": logging.DEBUG,
    "popi.gateway": logging.DEBUG,
    "uvicorn": logging.DEBUG,
    "uvicorn.error": logging.DEBUG,
    "asyncio": logging.DEBUG,
    "sqlalchemy": logging.INFO,  # at DEBUG it logs rows; nothing of ours turns that on
}
"""The root, and loggers that need not propagate to it. uvicorn's log of paths is off as long as it has no handler."""


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("httpx2"):
            return  # the test's own client
        plain = logging.Formatter("%(message)s").format(record)  # with the traceback, if there is one
        self.lines.append(f"{record.name} {plain} {record.args!r} {JsonLines().format(record)}")


@contextmanager
def all_logs() -> Iterator[list[str]]:
    """The lines; levels and handlers are put back at the end."""
    handler = _Lines()
    before = {name: logging.getLogger(name).level for name in LEVELS}
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).addHandler(handler)
    try:
        yield handler.lines
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
            logging.getLogger(name).removeHandler(handler)
