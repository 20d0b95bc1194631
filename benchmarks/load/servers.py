"""The servers to measure: their processes and ports, LiteLLM's proxy, the users' summaries."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from load.client import KEY, USERS

READY_S = 120.0


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children, which other load on the cores hardly affects."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # the process has ended, or this is not Linux
        return 0.0
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_seconds(int(child)) for child in children)


@contextmanager
def process(command: list[str], env: dict[str, str], port: int, path: str, log: Path) -> Iterator[int]:
    """Run a server for the duration of the block, once it answers at `path`. Yields its process id."""
    with log.open("wb") as out:
        running = subprocess.Popen(command, env=os.environ | env, stdout=out, stderr=out, cwd=log.parent)
        try:
            end = time.monotonic() + READY_S
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).close()
                    break
                except OSError as error:
                    if isinstance(error, urllib.error.HTTPError):
                        break  # it answers, even if with an error
                    if running.poll() is not None or time.monotonic() > end:
                        raise SystemExit(f"{command[0]} did not start:\n{log.read_text()[-2000:]}") from None
                    time.sleep(0.1)
            yield running.pid
        finally:
            running.terminate()
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                running.kill()


def litellm_command(choice: str, folder: Path, ports: dict[str, int]) -> list[str] | None:
    """The command for LiteLLM's proxy, which is installed first if requested."""
    if choice == "none":
        return None
    if choice == "install":
        home = Path("runs/bench/litellm").resolve()
        python = home / "bin/python"
        if not (home / "bin/litellm").exists():
            subprocess.run([sys.executable, "-m", "venv", home], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", "litellm[proxy]"], check=True)
    else:
        python = Path(choice)
    (folder / "litellm.yaml").write_text(
        "model_list:\n"
        "  - model_name: m\n"
        f"    litellm_params: {{model: openai/m, api_base: 'http://127.0.0.1:{ports['direct']}/v1', api_key: none}}\n"
        f"general_settings: {{master_key: {KEY}}}\n"
        "litellm_settings: {telemetry: false, set_verbose: false}\n"
    )
    command = [str(python.parent / "litellm"), "--config", str(folder / "litellm.yaml")]
    return [*command, "--host", "127.0.0.1", "--port", str(ports["LiteLLM"])]


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def put_summaries(port: int) -> None:
    text = "Prefers short answers in plain words, with one example. Knows the shop well. Dislikes emphasis and emoji."
    for user in range(USERS):
        made = urllib.request.Request(
            f"http://127.0.0.1:{port}/users/user-{user}/summary",
            json.dumps({"text": text}).encode(),
            {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
            method="PUT",
        )
        urllib.request.urlopen(made, timeout=10).close()
