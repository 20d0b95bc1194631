"""Gateways and workers as processes, which can be killed at any moment and started again on the same port."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

ADMIN = "an-admin-key-of-the-torture"
READY_S = 120.0
HEADERS = {"authorization": f"Bearer {ADMIN}"}

SETTINGS = """
[proxy]
log_requests = false
[renewal]
quiet_s = 0.2
max_wait_s = 1.0
poll_interval_s = 0.05
lease_s = 2.0
backoff_s = 0.2
max_backoff_s = 2.0
conflict_delay_s = 0.2
reasons = false
rebuild_interval_s = 1.0
user_renewals_per_hour = 1000000
user_renewals_per_day = 1000000
key_renewals_per_day = 100000000
[inference]
check = false
structured = false
[capture]
tenants = ["*"]
"""
"""Short delays, so that renewals keep pace with the faults; and answers are stored, so that feedback can refer to
them."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Forks:
    """The process that all others are forked from (forks.py)."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def start(self, arguments: list[str], log: Path, clock: Path | None) -> int:
        """Start a `popi` command; returns its process id."""
        async with self._turn:
            if self._process is None:
                env = os.environ | {"POPI_ADMIN_KEY": ADMIN, "NO_PROXY": "*", "PYTHONUNBUFFERED": "1"}
                pipe = asyncio.subprocess.PIPE
                script = str(Path(__file__).parent / "forks.py")
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, script, stdin=pipe, stdout=pipe, env=env
                )
                await self._answer()
            wanted = {"arguments": arguments, "log": str(log), "clock": None if clock is None else str(clock)}
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
            await self._process.stdin.drain()
            return int(await self._answer())

    async def _answer(self) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("popi can't be imported; see above")
        return line

    async def close(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None


FORKS = Forks()


class Process:
    """A `popi` command on a store.

    Args:
        folder: for its log and settings.
        name: of the log.
        arguments: of `popi`.
        clock: a file with the seconds to add to its clock; None leaves the clock alone.
    """

    def __init__(self, folder: Path, name: str, arguments: list[str], clock: Path | None = None) -> None:
        self.log = folder / f"{name}.log"
        self._arguments, self._clock = arguments, clock
        self.pid = 0

    async def start(self) -> None:
        self.pid = await FORKS.start(self._arguments, self.log, self._clock)

    @property
    def runs(self) -> bool:
        if not self.pid:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    async def kill(self) -> None:
        """SIGKILL: nothing can be cleaned up."""
        while self.runs:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if it doesn't end."""
        if self.runs:
            os.kill(self.pid, signal.SIGTERM)
        end = time.monotonic() + 40
        while self.runs and time.monotonic() < end:
            await asyncio.sleep(0.05)
        await self.kill()

    def memory_and_files(self) -> tuple[float, int]:
        """Megabytes of resident memory, and open file descriptors."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match is not None
        return int(match[1]) / 1024, len(os.listdir(f"/proc/{self.pid}/fd"))


class Gateway(Process):
    """`popi serve` on a port that stays the same from start to start."""

    def __init__(self, folder: Path, store: str, upstream: str | None, name: str = "gateway", **more: Any) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        arguments = ["serve", "--port", str(self.port), "--store", store, "--no-worker"]
        arguments += ["--upstream", upstream] if upstream is not None else []
        super().__init__(folder, name, [*arguments, "--config", str(settings_file(folder))], **more)

    async def ready(self, seconds: float = READY_S) -> None:
        """Wait until it serves requests and reaches its store.

        Raises:
            RuntimeError: it ended, or takes too long.
        """
        end = time.monotonic() + seconds
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < end and self.runs:
                with suppress(aiohttp.ClientError, TimeoutError, OSError):
                    async with session.get(f"{self.url}/readyz", timeout=aiohttp.ClientTimeout(5)) as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.02)
        raise RuntimeError(f"{self.log.name} is not ready: " + self.log.read_text()[-2000:])


class Worker(Process):
    """`popi worker` with the model behind an API."""

    def __init__(self, folder: Path, store: str, model: str, name: str = "worker", **more: Any) -> None:
        arguments = ["worker", "--store", store, "--inference-url", f"{model}/v1", "--inference-model", "writer"]
        super().__init__(folder, name, [*arguments, "--config", str(settings_file(folder))], **more)


def settings_file(folder: Path) -> Path:
    file = folder / "gateway.toml"
    if not file.exists():
        file.write_text(SETTINGS)
    return file


def tracebacks(folder: Path) -> list[str]:
    """Where the processes' logs have a Python traceback, with its beginning and end."""
    excerpts = []
    for log in sorted(folder.glob("*.log")):
        if (text := log.read_text()).count("Traceback"):
            whole = text[text.index("Traceback") :][:6000]
            excerpts.append(f"a traceback in {log.name}: {whole[:300]} … {whole[-1200:]}")
    return excerpts
