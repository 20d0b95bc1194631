"""A real pooler in front of the PostgreSQL of the tests: pgbouncer, in transaction mode."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from postgres_copies import POSTGRES
from sqlalchemy.engine import make_url

PGBOUNCER = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
needs_pooler = pytest.mark.skipif(
    PGBOUNCER is None or POSTGRES is None,
    reason="there is no pgbouncer or no PostgreSQL here: no test behind a pooler "
    "(`.ci/pgbouncer .ci/postgres make test` gets both)",
)
SERVER_CONNECTIONS = 3
"""To each database, shared by all who come: a transaction is on another than the one before it."""


class Pooler:
    """One that may be killed and started again at the same address.

    Args:
        folder: for its files.
    """

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        server = make_url(POSTGRES or "")
        self._config = folder / "pgbouncer.ini"
        self._config.write_text(
            f"[databases]\n* = host={server.host} port={server.port} user={server.username}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = transaction\ndefault_pool_size = {SERVER_CONNECTIONS}\n"
            "max_client_conn = 200\nserver_login_retry = 0.2\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        who = ["-u", "nobody"] if os.getuid() == 0 else []  # it refuses to run as root
        os.chmod(self._config.parent, 0o755)
        command = [str(PGBOUNCER), "-q", *who, str(self._config)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        give_up = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < give_up and self._process.poll() is None, "pgbouncer did not start"
                time.sleep(0.02)

    def kill(self) -> None:
        """As the kernel would: no goodbye."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def through(self, url: str) -> str:
        """The URL of the same database, by way of the pooler."""
        return make_url(url).set(host="127.0.0.1", port=self.port).render_as_string(hide_password=False)
