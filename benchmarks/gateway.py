"""Cost of the gateway: the same requests sent directly, through the gateway, and through LiteLLM's proxy.

python benchmarks/gateway.py [--seconds S] [--rounds N] [--rate R] [--connections C] [--litellm install|PYTHON|none]
                             [--against CHECKOUT]

Everything runs on the same cores of this machine: an upstream that answers immediately, a bare relay made of uvicorn
and aiohttp (typical components of such a gateway, without popi's code), the gateway as `popi serve` with SQLite and a
summary for every user, LiteLLM's proxy in a separate environment, and the client. There are two loads: open loop, where
requests are sent at a fixed rate regardless of earlier answers and timed from when they were due (so that a stalling
server is charged for requests it delayed), or from when they were sent if the timer woke early; and flat out, where
each connection sends its next request as soon as it gets an answer. The ways take turns in each round, and figures
cover all rounds. Added milliseconds are differences of percentiles to the direct way; CPU milliseconds are the server's
own, per request, and hardly depend on other load. Rows go to runs/bench/gateway.json. Every answer is checked, and
personalised ones are counted.
"""

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import uvloop
from load.bare import bare
from load.client import KEY, Client, Timings
from load.report import report
from load.servers import cpu_seconds, free_ports, litellm_command, process, put_summaries
from load.upstream import upstream

LOADS = ("open loop", "flat out")


async def measure(
    ways: dict[str, int], pids: dict[str, int], options: argparse.Namespace
) -> dict[tuple[str, bool, str], Timings]:
    measured: dict[tuple[str, bool, str], Timings] = {}
    for round_ in range(options.rounds + 1):
        for stream in (False, True):
            for load in LOADS:
                for way, port in ways.items():
                    # The first round is a warm-up and not counted.
                    timings = measured.setdefault((way, stream, load), Timings()) if round_ else Timings()
                    seconds = options.seconds if round_ else min(2.0, options.seconds)
                    client = Client(port, stream, timings)
                    began = cpu_seconds(pids[way])
                    if load == "flat out":
                        await client.flat_out(options.connections, seconds)
                    else:
                        await client.open_loop(options.litellm_rate if way == "LiteLLM" else options.rate, seconds)
                    timings.cpu_seconds += cpu_seconds(pids[way]) - began
                    for connection in client.free:
                        connection.transport.close()
    return measured


def serve(folder: Path, way: str, ports: dict[str, int]) -> list[str]:
    """The command that starts a gateway."""
    start = "from popi.cli import main; main()"
    command = [sys.executable, "-c", start, "serve", "--upstream", f"http://127.0.0.1:{ports['direct']}"]
    return [*command, "--port", str(ports[way]), "--store", f"sqlite:///{folder}/{way}.db"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="per load and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second, open loop")
    parser.add_argument(
        "--litellm-rate", type=float, default=20.0, help="the same for LiteLLM, which 200 would overload"
    )
    parser.add_argument("--connections", type=int, default=32, help="flat out")
    parser.add_argument(
        "--litellm", default="install", help="install, none, or the python of an environment that has it"
    )
    parser.add_argument("--against", type=Path, help="another checkout of popi to measure along with this one")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/gateway.json"))
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bare", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        return uvloop.run(upstream(options.upstream))
    if options.bare:
        return bare(*options.bare)
    ports = dict(zip(("direct", "bare", "popi", "other", "LiteLLM"), free_ports(5), strict=True))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = str(Path(__file__).resolve())
        litellm = litellm_command(options.litellm, folder, ports)
        direct = [sys.executable, script, "--upstream", str(ports["direct"])]
        relay = [sys.executable, script, "--bare", str(ports["bare"]), str(ports["direct"])]
        other = options.against and {"PYTHONPATH": str(options.against.resolve() / "src"), "POPI_ADMIN_KEY": KEY}
        pids = {}
        with ExitStack() as running:
            for way, command, env, path in (
                ("direct", direct, {}, "/"),
                ("bare", relay, {}, "/"),
                ("popi", serve(folder, "popi", ports), {"POPI_ADMIN_KEY": KEY}, "/readyz"),
                ("other", serve(folder, "other", ports) if other else None, other or {}, "/readyz"),
                ("LiteLLM", litellm, {"LITELLM_LOG": "ERROR"}, "/health/liveliness"),
            ):
                if command is None:
                    del ports[way]
                else:
                    pids[way] = running.enter_context(process(command, env, ports[way], path, folder / f"{way}.log"))
            for way in {"popi", "other"} & ports.keys():
                put_summaries(ports[way])
            measured = uvloop.run(measure(ports, pids, options))
    rows = report(measured, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
