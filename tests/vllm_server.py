"""A real vLLM on this machine's processor, which tests kill and start again. `.ci/vllm` installs it."""

import os
import signal
import subprocess
import time
from pathlib import Path

import httpx2

from popi.serving.server import free_port

PROGRAM = os.environ.get("POPI_TEST_VLLM", "")
"""The `vllm` program; empty where there is none."""
SECONDS = 1800
"""Maximum seconds of a start: one or two minutes on two free cores, a quarter of an hour on busy ones."""
NAME = "served"
"""The model's name on the server."""
# One core for its arithmetic, 1 GiB for its cache, and no request of its own to the network.
_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


class VllmServer:
    """A server, with one model at a time and always on the same port.

    Args:
        folder: where its log goes.
    """

    def __init__(self, folder: Path) -> None:
        self.log, self.port = folder / "vllm.log", free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._model: Path | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def serve(self, model: Path, *options: str) -> None:
        """Serve the model in a folder and wait until the server answers. Does nothing if it does already."""
        if self._process is not None and self._model == model and self._process.poll() is None:
            return
        self.kill()
        command = [PROGRAM, "serve", str(model), "--served-model-name", NAME, "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--dtype", "float32", "--max-model-len", "2048", "--enforce-eager"]
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SSL_CERT_FILE")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | _SETTINGS,
                cwd=self.log.parent,
                start_new_session=True,
            )
        deadline = time.monotonic() + SECONDS
        while not self._ready():
            ended = self._process.poll() is not None
            assert not ended and time.monotonic() < deadline, self.log.read_text(errors="replace")[-4000:]
            time.sleep(0.5)
        self._model = model

    def kill(self) -> None:
        """SIGKILL the server with all of its processes, as the kernel does when memory runs out."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)
            self._process = self._model = None

    def _ready(self) -> bool:
        try:
            return httpx2.get(f"http://127.0.0.1:{self.port}/health", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False
