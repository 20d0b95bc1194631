"""`popi serve --demo`: an offline gateway with the nano model and a few users.

It runs three processes: the gateway (this one, without torch), the nano model as the upstream, and a worker with the
nano model as the inference model. A deployment with a real upstream differs only in the models.
"""

import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import Connection

from popi.errors import UpstreamError
from popi.nano.world import make_users
from popi.serving.keys import create
from popi.serving.pages.settings import PageSettings
from popi.serving.proxy.settings import ProxySettings
from popi.serving.server import free_port, listens, run
from popi.serving.settings import CaptureSettings, GatewaySettings, RenewalSettings
from popi.serving.store import signals, summaries
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce

TENANT = "demo"
NAMES = ("ada", "ben", "cleo")
PROMPT = "tell me about tea."
LOAD_SECONDS = 300.0
"""On a busy machine, the first import of a fresh install takes minutes: nothing is compiled yet."""
BLOCK = "preferences of this user : {summary}"
"""The wording of the nano model's own templates, which is the only one it was trained on."""
RENEWAL = RenewalSettings(quiet_s=1.0, max_wait_s=5.0)
"""Short times, so that you can watch a summary change."""


def run_demo(host: str, port: int, store: str | None) -> None:
    """Serve until Ctrl-C.

    Args:
        host: address to listen on.
        port: port to listen on; 0 picks a free one.
        store: URL of the store; None uses a temporary one.

    Raises:
        UpstreamError: the nano model's server did not start.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes below end too
    with ExitStack() as stack:
        if store is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="popi-demo-"))
            store = f"sqlite:///{Path(folder) / 'popi.db'}"
        database = Database.open(store)
        key = create(database, "app", TENANT)[0]
        _fill(database)
        upstream_port = free_port()
        model = stack.enter_context(_process("popi.nano.server", "--port", str(upstream_port)))
        stack.enter_context(_process("popi.cli", "worker", "--model", "nano", "--store", store))
        print("loading the nano model, twice (upstream and inference model) ...", file=sys.stderr, flush=True)
        _wait(database, model, upstream_port)
        settings = GatewaySettings(
            proxy=ProxySettings(upstream=f"http://127.0.0.1:{upstream_port}/v1", block=BLOCK),
            renewal=RENEWAL,
            capture=CaptureSettings(tenants=(TENANT,)),
            page=PageSettings(name="The popi demo", model="nano"),
        )
        run(
            database,
            settings,
            host,
            port,
            started=lambda url: print(_instructions(url, key), file=sys.stderr, flush=True),
        )


def _fill(database: Database) -> None:
    """Add users of the nano world, whose summaries are due immediately."""
    people = make_users(len(NAMES), 0, "test")

    def write(connection: Connection) -> None:
        now = database.now(connection)
        for name, person in zip(NAMES, people, strict=True):
            signals.add(connection, TENANT, name, person.user.signals, now, Debounce(0, 0))

    database.write(write)


@contextmanager
def _process(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module as a process that ends with the block, or with this process, however that ends."""
    command = [sys.executable, "-m", "popi.serving.worker.tethered", module, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _wait(database: Database, model: "subprocess.Popen[bytes]", port: int) -> None:
    """Wait until the sample users have summaries and the model's server is listening."""
    deadline = time.monotonic() + LOAD_SECONDS
    while any(database.read(summaries.current_text, TENANT, name) is None for name in NAMES) or not listens(port):
        if model.poll() is not None or time.monotonic() > deadline:
            raise UpstreamError("the nano model did not start; does `popi generate` work here?")
        time.sleep(0.2)


def _instructions(url: str, key: str) -> str:
    bearer = '-H "Authorization: Bearer $POPI_KEY"'
    chat = f'{{"model": "nano", "messages": [{{"role": "user", "content": "{PROMPT}"}}]}}'
    signal = '{"signals": [{"type": "statement", "text": "i want short replies."}]}'
    return "\n".join(
        (
            f"popi listens on {url}; this demo's users: {', '.join(NAMES)}. Try in another shell:",
            f"  export POPI_URL={shlex.quote(url)} POPI_KEY={key}",
            f"  curl $POPI_URL/v1/chat/completions {bearer} -H 'x-popi-user: ada' -d '{chat}'",
            f"  curl $POPI_URL/users/ada/summary {bearer}",
            f"  curl $POPI_URL/users/ada/signals {bearer} -H 'content-type: application/json' -d '{signal}'",
            f"  curl $POPI_URL/users/ada/link -X POST {bearer}    # a link to ada's own page",
            "Press Ctrl-C to stop.",
        )
    )
