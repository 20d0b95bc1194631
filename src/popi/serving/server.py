"""Run the gateway under uvicorn."""

import asyncio
import gc
import socket
import sys
from collections.abc import Callable

import uvicorn

from popi.errors import ConfigError
from popi.serving.app import Gateway
from popi.serving.connections import Connections, uvicorn_settings
from popi.serving.keys import first_admin_key
from popi.serving.settings import GatewaySettings
from popi.serving.store.database import Database
from popi.serving.worker.renewal import Worker

NEW_OBJECTS = 10_000
"""So many new objects, and Python looks for garbage in cycles; its own 700 are a request's or two."""


class _Server(uvicorn.Server):
    """Says so once it listens; and ends in two steps, so that a load balancer in front can notice."""

    def __init__(
        self, config: uvicorn.Config, started: Callable[[], None], ending: Callable[[], None], notice_s: float
    ) -> None:
        super().__init__(config)
        self._say, self._ending, self._notice_s = started, ending, notice_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # What is there now stays: the collector need not walk through it again and again, amid requests.
            gc.collect()
            gc.freeze()
            gc.set_threshold(NEW_OBJECTS, 20, 50)
            self._say()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ending()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._notice_s
        while loop.time() < end and not self.force_exit:
            await asyncio.sleep(0.1)
        await super().shutdown(sockets)


def run(
    database: Database,
    settings: GatewaySettings,
    host: str,
    port: int,
    worker: Worker | None = None,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM. At the first start the admin key is printed on stderr, once.

    At the end `/readyz` fails first, for `notice_s`; then nobody is let in any more, and answers under way have
    `drain_s`.

    Args:
        database: the store, open; closed at the end.
        settings: of the gateway.
        host: address to listen at.
        port: 0 takes any that is free.
        worker: renews summaries in this process.
        started: called with the gateway's URL once it listens; by default a line on stderr.

    Raises:
        ConfigError: the address can't be listened at.
    """
    gateway, connections = Gateway(database, settings, worker), Connections(settings.server)
    listening = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listening.getsockname()[1]}"
    if (key := first_admin_key(database)) is not None:
        _say(f"admin key, shown this once: {key}")
    say = started or (lambda url: _say(f"popi listens at {url}"))
    config = uvicorn.Config(
        gateway,
        **uvicorn_settings(settings.server, connections),
        log_level="warning",
        lifespan="on",
        timeout_graceful_shutdown=settings.server.drain_s,
        timeout_keep_alive=settings.proxy.client_keepalive_s,
    )

    def ending() -> None:
        gateway.ending = connections.ending = True

    server = _Server(config, lambda: say(url), ending, settings.server.notice_s)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(server.serve([listening]))


def _say(line: str) -> None:
    """A line on stderr in one write: `print` makes two, and other threads' lines of log come between."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"can't listen at {host}:{port} ({error.strerror}); name another address with --host and --port"
        ) from None
    listening.listen(2048)
    listening.set_inheritable(True)
    return listening


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether anybody listens at a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
