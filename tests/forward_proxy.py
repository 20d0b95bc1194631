"""A real forward proxy: tinyproxy, with or without a login."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

TINYPROXY = shutil.which("tinyproxy")
needs_proxy = pytest.mark.skipif(
    TINYPROXY is None, reason="there is no tinyproxy here: no test behind a proxy (`.ci/forward-proxy` gets it)"
)
LOGIN = "popi:s3cret-of-the-proxy"


@dataclass
class ForwardProxy:
    """One that runs.

    Attributes:
        address: host and port.
        log: what it was asked for.
    """

    address: str
    log: Path

    @property
    def asked(self) -> list[str]:
        """The first lines of requests, as they came."""
        return [line.partition("): ")[2] for line in self.log.read_text().splitlines() if "Request (file" in line]


@contextmanager
def forward_proxy(folder: Path, login: bool = False, more: str = "") -> Iterator[ForwardProxy]:
    """A proxy for as long as the block lasts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(exist_ok=True)
    file, log = folder / "tinyproxy.conf", folder / "tinyproxy.log"
    lines = [f"Port {port}", "Listen 127.0.0.1", f'LogFile "{log}"', "LogLevel Info", "Timeout 60", more]
    if login:
        lines.append(f"BasicAuth {LOGIN.replace(':', ' ')}")
    file.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen([str(TINYPROXY), "-d", "-c", str(file)], stdout=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < give_up and process.poll() is None, "tinyproxy did not start"
                time.sleep(0.02)
        yield ForwardProxy(f"127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait(10)
