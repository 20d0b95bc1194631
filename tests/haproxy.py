"""A real load balancer in front of gateways: haproxy, which passes TCP connections on."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
needs_balancer = pytest.mark.skipif(
    HAPROXY is None, reason="there is no haproxy here (`.ci/haproxy make slow` installs it)"
)
CHECK_SECONDS = 0.2
"""Interval of asking each gateway whether it is ready; after two bad answers it gets no more connections."""


@contextmanager
def balancer(folder: Path, ports: Sequence[int]) -> Iterator[str]:
    """The URL of a balancer in front of gateways on these ports of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own = probe.getsockname()[1]
    servers = "\n".join(f"    server gateway{n} 127.0.0.1:{port}" for n, port in enumerate(ports))
    config = folder / "haproxy.cfg"
    config.write_text(
        "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 300s\n    timeout server 300s\n"
        "    timeout check 5s\n    option redispatch\n    retries 3\n"
        f"frontend clients\n    bind 127.0.0.1:{own}\n    default_backend gateways\n"
        "backend gateways\n    balance roundrobin\n    option httpchk GET /readyz\n"
        f"    default-server check inter {CHECK_SECONDS * 1000:.0f}ms fall 2 rise 1\n{servers}\n"
    )
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([str(HAPROXY), "-db", "-f", str(config)], stdout=log, stderr=log)
    try:
        give_up = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", own), 1).close()
                break
            except OSError:
                assert time.monotonic() < give_up and process.poll() is None, (folder / "haproxy.log").read_text()
                time.sleep(0.05)
        yield f"http://127.0.0.1:{own}"
    finally:
        process.kill()
        process.wait()
