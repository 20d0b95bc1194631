"""What the gateway costs: the same requests sent directly, through it, and through LiteLLM's proxy, on the same cores.

python benchmarks/gateway.py [--seconds S] [--rounds N] [--rate R] [--connections C] [--litellm install|PYTHON|none]
                             [--against CHECKOUT]

Everything runs here: an upstream that answers at once, a bare relay of uvicorn and aiohttp (what such a
gateway is usually made of, with nothing of popi's), the gateway as `popi serve` with SQLite and a summary for
every user, LiteLLM's proxy in an environment of its own, and the client. Two loads: open loop, requests at a fixed rate
whether or not the last one was answered, timed from the moment at which each was due (a server that stalls is not
spared the requests that it held up), or sent, where the timer woke early; and flat out, every connection sending as
soon as it was answered. The ways take turns in each round; figures are over all rounds. Added milliseconds are
differences of percentiles to the direct way; CPU milliseconds are the server's own, a request, and hardly depend on
what else runs on the cores. Rows go to
runs/bench/gateway.json; every answer is checked, and that the gateway personalised it is counted.
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
    found: dict[tuple[str, bool, str], Timings] = {}
    for round_ in range(options.rounds + 1):
        for stream in (False, True):
            for load in LOADS:
                for way, port in ways.items():
                    # The first round warms up and does not count.
                    timings = found.setdefault((way, stream, load), Timings()) if round_ else Timings()
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
    return found


def serve(folder: Path, way: str, ports: dict[str, int]) -> list[str]:
    """The command that starts a gateway."""
    start = "from popi.cli import main; main()"
    command = [sys.executable, "-c", start, "serve", "--upstream", f"http://127.0.0.1:{ports['direct']}"]
    return [*command, "--port", str(ports[way]), "--store", f"sqlite:///{folder}/{way}.db"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second, open loop")
    parser.add_argument("--litellm-rate", type=float, default=20.0, help="the same for LiteLLM, which 200 would drown")
    parser.add_argument("--connections", type=int, default=32, help="flat out")
    parser.add_argument("--litellm", default="install", help="install, the python of an environment that has it, none")
    parser.add_argument("--against", type=Path, help="another checkout of popi, measured in the same turns")
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
        me = str(Path(__file__).resolve())
        litellm = litellm_command(options.litellm, folder, ports)
        behind = [sys.executable, me, "--upstream", str(ports["direct"])]
        between = [sys.executable, me, "--bare", str(ports["bare"]), str(ports["direct"])]
        other = options.against and {"PYTHONPATH": str(options.against.resolve() / "src"), "POPI_ADMIN_KEY": KEY}
        pids = {}
        with ExitStack() as running:
            for way, command, env, path in (
                ("direct", behind, {}, "/"),
                ("bare", between, {}, "/"),
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
            found = uvloop.run(measure(ports, pids, options))
    rows = report(found, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
