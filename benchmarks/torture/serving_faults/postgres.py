"""A PostgreSQL server of our own, which can be stopped and started again."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg

from .cases import Skipped
from .processes import free_port


class Server:
    """The server, in a temporary folder. Its data survives `stop`; the machine itself doesn't fail here, so fsync is
    off."""

    def __init__(self) -> None:
        installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        beside = shutil.which("pg_ctl")
        if not installed and beside is None:
            raise Skipped("PostgreSQL is not installed")
        self._bin = installed[-1] if installed else Path(str(beside)).parent
        self.folder = Path(tempfile.mkdtemp(prefix="popi-torture-"))
        self._as: list[str] = []
        if os.getuid() == 0:  # the server refuses to run as root
            shutil.chown(self.folder, "postgres")
            self._as = ["runuser", "-u", "postgres", "--"]
        self.port = free_port()
        self._run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as, str(self._bin / program), "-D", str(self.folder / "data"), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr[-500:]}")

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c max_connections=60 -c fsync=off"
        options += " -c full_page_writes=off"
        command = [*self._as, str(self._bin / "pg_ctl"), "-D", str(self.folder / "data"), "-w"]
        command += ["-l", str(self.folder / "log"), "-o", options, "start"]
        # Its output is the server's too, which would keep a pipe open.
        subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-m", mode, "-w", "stop")

    def url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def database(self, name: str) -> str:
        """The URL of a new, empty database."""
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")  # type: ignore[call-overload]
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        return self.url(name)

    def connect(self, name: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(self.url(name), autocommit=True)

    async def query(self, name: str, statement: str) -> list[tuple[object, ...]]:
        def run() -> list[tuple[object, ...]]:
            with self.connect(name) as connection:
                return connection.execute(statement).fetchall()  # type: ignore[call-overload,no-any-return]

        return await asyncio.to_thread(run)

    def close(self) -> None:
        subprocess.run(
            [*self._as, str(self._bin / "pg_ctl"), "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop"],
            cwd="/",
            capture_output=True,
        )
        shutil.rmtree(self.folder, ignore_errors=True)
