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
"""New objects before Python collects garbage; the default of 700 is reached within a request or two."""


class _Server(uvicorn.Server):
    """Reports when it is listening, and shuts down in two steps, so that load balancers can notice."""

    def __init__(
        self, config: uvicorn.Config, started: Callable[[], None], ending: Callable[[], None], shutdown_delay_s: float
    ) -> None:
        super().__init__(config)
        self._on_started, self._ending, self._shutdown_delay_s = started, ending, shutdown_delay_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # Exempt everything loaded so far from garbage collection, which would slow down requests.
            gc.collect()
            gc.freeze()
            gc.set_threshold(NEW_OBJECTS, 20, 50)
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ending()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._shutdown_delay_s
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
    """Serve until Ctrl-C or SIGTERM. The first start prints an admin key to stderr, once.

    Shutting down takes two steps: `/readyz` fails for `shutdown_delay_s`; then no new connections are accepted, and
    responses in progress have `drain_timeout_s` to finish.

    Args:
        database: the store, open; closed at the end.
        settings: the gateway's settings.
        host: address to listen on.
        port: port to listen on; 0 picks a free one.
        worker: renews summaries in this process.
        started: called with the gateway's URL once it is listening; by default prints a line to stderr.

    Raises:
        ConfigError: the address is not available.
    """
    gateway, connections = Gateway(database, settings, worker), Connections(settings.server)
    listener = _listen(host, port)
    url_host = f"[{host}]" if ":" in host else host
    url = f"http://{url_host}:{listener.getsockname()[1]}"
    if (key := first_admin_key(database)) is not None:
        _print_line(f"admin key, shown only once: {key}")
    on_started = started or (lambda url: _print_line(f"popi listens on {url}"))
    config = uvicorn.Config(
        gateway,
        **uvicorn_settings(settings.server, connections),
        log_level="warning",
        lifespan="on",
        timeout_graceful_shutdown=settings.server.drain_timeout_s,
        timeout_keep_alive=settings.proxy.client_keepalive_s,
    )

    def ending() -> None:
        gateway.ending = connections.ending = True

    server = _Server(config, lambda: on_started(url), ending, settings.server.shutdown_delay_s)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(server.serve([listener]))


def _print_line(line: str) -> None:
    """Write a line to stderr in one call: `print` makes two, and other threads' log lines could come between them."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"can't listen on {host}:{port} ({error.strerror}); choose another address with --host and --port"
        ) from None
    listener.listen(2048)
    listener.set_inheritable(True)
    return listener


def free_port() -> int:
    """A local port that is free right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether something is listening on a local port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
