"""Start a gateway as its users do: `popi serve` in a separate process."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

ADMIN = "an-admin-key-of-the-tests"


@dataclass
class GatewayProcess:
    """A gateway's process and URL."""

    process: "subprocess.Popen[str]"
    url: str = ""
    lines: list[str] = field(default_factory=list)

    def kill(self) -> None:
        """Send SIGKILL, so that the process can't clean up."""
        self.process.kill()
        self.process.wait()


def start(
    store: str, *more: str, upstream: str = "http://127.0.0.1:9", env: dict[str, str] | None = None
) -> GatewayProcess:
    """Start `popi serve` and wait until it is listening."""
    command = [
        sys.executable,
        "-m",
        "popi.cli",
        "serve",
        "--upstream",
        upstream,
        "--port",
        "0",
        "--store",
        store,
        *more,
    ]
    environment = os.environ | {"POPI_ADMIN_KEY": ADMIN, "NO_PROXY": "*"} | (env or {})
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    started = GatewayProcess(process)

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            started.lines.append(line)

    threading.Thread(target=read, daemon=True).start()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for line in list(started.lines):
            if line.startswith("popi listens on "):
                started.url = line.removeprefix("popi listens on ").strip()
                return started
        time.sleep(0.02)
    process.kill()
    raise AssertionError("the gateway did not start:\n" + "".join(started.lines))


@contextmanager
def running(
    store: str, *more: str, upstream: str = "http://127.0.0.1:9", env: dict[str, str] | None = None
) -> Iterator[GatewayProcess]:
    """Run a gateway for the duration of the block."""
    started = start(store, *more, upstream=upstream, env=env)
    try:
        yield started
    finally:
        started.process.terminate()
        started.process.wait(20)
