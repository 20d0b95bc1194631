"""`popi serve --demo`: the gateway offline, with the nano model before and behind it, and a few users.

Three processes: the gateway (this one, without torch), the nano model as upstream, and a worker with the nano model as
inference model. So it is with a real upstream, too, except for the model's name.
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
from popi.serving.proxy.settings import ProxySettings
from popi.serving.server import free_port, listens, run
from popi.serving.settings import CaptureSettings, GatewaySettings, PageSettings, RenewalSettings
from popi.serving.store import signals, summaries
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce

TENANT = "demo"
NAMES = ("ada", "ben", "cleo")
PROMPT = "tell me about tea."
LOAD_SECONDS = 300.0
"""On a busy machine, the first import of a fresh install takes minutes: nothing is compiled yet."""
BLOCK = "preferences of this user : {summary}"
"""As the nano model's own templates put a summary in: it was trained on no other words."""
RENEWAL = RenewalSettings(quiet=1.0, longest=5.0)
"""Short, so that one can watch a summary change."""


def run_demo(host: str, port: int, store: str | None) -> None:
    """Serve until Ctrl-C.

    Args:
        host: address to listen at.
        port: 0 takes any that is free.
        store: URL of the store; None: a temporary one, gone at the end.

    Raises:
        UpstreamError: the nano model's server does not start.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes below end, too
    with ExitStack() as stack:
        if store is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="popi-demo-"))
            store = f"sqlite:///{Path(folder) / 'popi.db'}"
        database = Database.open(store)
        key = create(database, "app", TENANT)[0]
        _fill(database)
        behind = free_port()
        model = stack.enter_context(_process("popi.nano.server", "--port", str(behind)))
        stack.enter_context(_process("popi.cli", "worker", "--model", "nano", "--store", store))
        print("loading the nano model, twice (upstream and inference model) ...", file=sys.stderr, flush=True)
        _wait(database, model, behind)
        settings = GatewaySettings(
            proxy=ProxySettings(upstream=f"http://127.0.0.1:{behind}/v1", block=BLOCK),
            renewal=RENEWAL,
            capture=CaptureSettings(tenants=(TENANT,)),
            page=PageSettings(name="The popi demo", model="nano"),
        )
        run(database, settings, host, port, started=lambda url: print(_told(url, key), file=sys.stderr, flush=True))


def _fill(database: Database) -> None:
    """Users of the nano world, due for a summary at once."""
    made = make_users(len(NAMES), 0, "test")

    def write(connection: Connection) -> None:
        now = database.now(connection)
        for name, person in zip(NAMES, made, strict=True):
            signals.add(connection, TENANT, name, person.user.signals, now, Debounce(0, 0))

    database.write(write)


@contextmanager
def _process(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A module as a process that ends with the block, or with this process, however that ends."""
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
    """Until the sample users have their summaries, and the model's server listens."""
    give_up = time.monotonic() + LOAD_SECONDS
    while any(database.read(summaries.current_text, TENANT, name) is None for name in NAMES) or not listens(port):
        if model.poll() is not None or time.monotonic() > give_up:
            raise UpstreamError("the nano model did not start; does `popi generate` work here?")
        time.sleep(0.2)


def _told(url: str, key: str) -> str:
    bearer = '-H "Authorization: Bearer $POPI_KEY"'
    chat = f'{{"model": "nano", "messages": [{{"role": "user", "content": "{PROMPT}"}}]}}'
    liked = '{"signals": [{"type": "statement", "text": "i want short replies."}]}'
    return "\n".join(
        (
            f"popi listens at {url}; users of this demo: {', '.join(NAMES)}. Try, in another shell:",
            f"  export POPI_URL={shlex.quote(url)} POPI_KEY={key}",
            f"  curl $POPI_URL/v1/chat/completions {bearer} -H 'x-popi-user: ada' -d '{chat}'",
            f"  curl $POPI_URL/users/ada/summary {bearer}",
            f"  curl $POPI_URL/users/ada/signals {bearer} -H 'content-type: application/json' -d '{liked}'",
            f"  curl $POPI_URL/users/ada/link -X POST {bearer}    # a link to ada's own page",
            "Ctrl-C ends it.",
        )
    )
