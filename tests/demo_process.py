"""`popi serve --demo` as users start it: in a separate process, and a client with the key that it prints."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

READY_SECONDS = 900
"""Only a hung process takes that long, even on a machine with thirty busy processes on two cores."""


@contextmanager
def demo(
    *more: str, python: str = sys.executable, **options: Any
) -> Iterator[tuple["subprocess.Popen[str]", httpx2.Client]]:
    """The demo, once it is ready; `options` are those of its process."""
    command = [python, "-m", "popi.cli", "serve", "--demo", "--port", "0", *more]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
    lines: list[str] = []
    assert process.stderr is not None
    threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True).start()
    try:
        give_up = time.monotonic() + READY_SECONDS
        while not (ready := re.search(r"POPI_URL=(\S+) POPI_KEY=(\S+)", "".join(lines))):
            assert process.poll() is None and time.monotonic() < give_up, "".join(lines)
            time.sleep(0.1)
        headers = {"authorization": f"Bearer {ready[2]}"}
        with httpx2.Client(base_url=ready[1], headers=headers, timeout=300) as client:
            yield process, client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
