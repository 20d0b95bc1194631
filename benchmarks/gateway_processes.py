"""Several gateway processes on one PostgreSQL, on the cores of this machine: how many requests, and what limits them.

.ci/postgres python benchmarks/gateway_processes.py [--processes 1 2] [--seconds S] [--connections C] [--users N]

Each load is flat out: every connection sends its next chat as soon as it has an answer, and all processes get equally
many connections. "known" users chat again within seconds, so that their summaries are in memory; "new" ones are chosen
at random among N, so that nearly every chat reads the store. Writes are signals sent to the profile API. Everything
shares the cores: gateways, PostgreSQL, an upstream that answers immediately, and the client. The CPU milliseconds of
each per request hardly depend on other load and say how many cores each needs; the rate does depend on it. Rows go to
runs/bench/gateway_processes.json.
"""

import argparse
import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import uvloop
from load.client import KEY, Client, Timings, request
from load.report import percentile
from load.servers import cpu_seconds, free_ports, process
from load.upstream import upstream
from rich.console import Console
from rich.table import Table

KNOWN = 100
LOADS = ("known", "new", "signals")
SUMMARY = "Prefers short answers in plain words, with one example. Knows the shop well. Dislikes emphasis and emoji."


def signal(user: int, number: int, port: int) -> bytes:
    """A request that adds a signal."""
    body = json.dumps({"signals": [{"type": "statement", "text": "I like tea. " * 20, "id": f"s{number}"}]}).encode()
    head = f"POST /users/user-{user}/signals HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {KEY}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Load(Client):
    """Connections to one gateway."""

    def __init__(self, port: int, load: str, users: int, timings: Timings) -> None:
        super().__init__(port, stream=False, timings=timings)
        if load == "new":
            self.requests = [request(user, False, port) for user in range(users)]
        elif load == "signals":
            self.events = 1 - 10**9  # any answer is complete
            numbers = range(5000)
            self.requests = [signal(n % users, secrets.randbits(40), port) for n in numbers]


def put_users(url: str, users: int) -> None:
    """Users with summaries."""
    with psycopg.connect(url, autocommit=True) as connection:
        who = f"SELECT 'default', 'user-' || n, 0{{}} FROM generate_series(0, {users - 1}) n"
        columns = "tenant, user_id, created_at, next_position"
        connection.execute(f"INSERT INTO users ({columns}) {who.format(', 0')}")  # type: ignore[call-overload]
        columns = "tenant, user_id, created_at, version, text, clauses, author"
        rest = f", 1, '{SUMMARY}', '[]', 'user'"
        connection.execute(f"INSERT INTO summaries ({columns}) {who.format(rest)}")  # type: ignore[call-overload]
        connection.execute("VACUUM ANALYZE")


def postmaster(url: str) -> int:
    """The process id of the server, the parent of every connection's."""
    with psycopg.connect(url) as connection:
        (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


async def flat_out(ports: list[int], load: str, options: argparse.Namespace, seconds: float) -> Timings:
    clients = [Load(port, load, options.users, Timings()) for port in ports]
    began = time.perf_counter()
    await asyncio.gather(*(one.flat_out(options.connections // len(ports), seconds) for one in clients))
    total = Timings(seconds=time.perf_counter() - began)
    for one in clients:
        total.whole += one.timings.whole
        total.errors += one.timings.errors
        total.personalised += one.timings.personalised
        for connection in one.free:
            connection.transport.close()
    return total


async def measure(ports: list[int], pids: dict[str, list[int]], options: argparse.Namespace) -> list[dict[str, Any]]:
    def cpu() -> dict[str, float]:
        used = {part: sum(map(cpu_seconds, of)) for part, of in pids.items()}
        return used | {"client": time.process_time()}

    rows = []
    for load in LOADS:
        await flat_out(ports, load, options, 2.0)  # a warm-up
        before = cpu()
        timings = await flat_out(ports, load, options, options.seconds)
        number = max(1, len(timings.whole) + timings.errors)
        used = {part: (after - before[part]) * 1000 / number for part, after in cpu().items()}
        rows.append(
            {
                "processes": len(ports),
                "load": load,
                "connections": options.connections,
                "requests_per_s": round(len(timings.whole) / timings.seconds, 1),
                **{f"p{share}_ms": round(percentile(timings.whole, share / 100), 2) for share in (50, 95, 99)},
                "errors": timings.errors,
                "personalised": round(timings.personalised / number, 3),
                "cpu_ms": {part: round(ms, 3) for part, ms in used.items()},
                "cores_used": round(sum(used.values()) / 1000 * number / timings.seconds, 2),
                "load_average": os.getloadavg()[0],
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=10.0, help="per load")
    parser.add_argument("--connections", type=int, default=32, help="in all")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--url", default=os.environ.get("POPI_TEST_POSTGRES"), help="a server to make a database on")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/gateway_processes.json"))
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        return uvloop.run(upstream(options.upstream))
    if not options.url:
        parser.error("no PostgreSQL: run it with .ci/postgres, or name a server with --url")
    rows = []
    for processes in options.processes:
        name = f"popi_load_{secrets.token_hex(4)}"
        with psycopg.connect(options.url, autocommit=True) as server:
            server.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        url = f"{options.url.rsplit('/', 1)[0]}/{name}"
        try:
            with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
                rows += with_gateways(processes, url, Path(folder), running, options)
        finally:
            with psycopg.connect(options.url, autocommit=True) as server:
                server.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload]
    table = Table(
        "processes", "load", "per second", "p50 ms", "p95", "p99", "CPU ms: gateway", "PostgreSQL", "upstream"
    )
    table.add_column("client")
    table.add_column("cores used")
    table.add_column("errors")
    for row in rows:
        cpu = (f"{row['cpu_ms'][part]:.2f}" for part in ("gateways", "postgresql", "upstream", "client"))
        times = (str(row[name]) for name in ("requests_per_s", "p50_ms", "p95_ms", "p99_ms"))
        table.add_row(str(row["processes"]), row["load"], *times, *cpu, str(row["cores_used"]), str(row["errors"]))
    Console(width=160).print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


def with_gateways(
    processes: int, url: str, folder: Path, running: ExitStack, options: argparse.Namespace
) -> list[dict[str, Any]]:
    upstream_port, *ports = free_ports(processes + 1)
    script = [sys.executable, str(Path(__file__).resolve()), "--upstream", str(upstream_port)]
    pids = {"upstream": [running.enter_context(process(script, {}, upstream_port, "/", folder / "upstream.log"))]}
    pids["gateways"] = []
    for number, port in enumerate(ports):
        command = [sys.executable, "-m", "popi.cli", "serve", "--upstream", f"http://127.0.0.1:{upstream_port}"]
        command += ["--port", str(port), "--store", url]
        log = folder / f"gateway-{number}.log"
        pids["gateways"].append(running.enter_context(process(command, {"POPI_ADMIN_KEY": KEY}, port, "/readyz", log)))
    put_users(url, options.users)
    pids["postgresql"] = [postmaster(options.url)]
    return uvloop.run(measure(ports, pids, options))


if __name__ == "__main__":
    main()
