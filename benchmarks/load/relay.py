"""What any process between a client and an upstream costs on this machine: bytes handed on unread."""

import asyncio
from typing import Any


class _Side(asyncio.Protocol):
    """One end of a relayed connection; what comes before the other end is there waits."""

    def __init__(self) -> None:
        self.other: Any = None
        self.waiting: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.waiting.append(data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()


class RelayedConnection(_Side):
    """A client's connection and its own one to the upstream."""

    def __init__(self, upstream_port: int) -> None:
        super().__init__()
        self.upstream_port = upstream_port

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.task = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, side = await loop.create_connection(_Side, "127.0.0.1", self.upstream_port)
        side.other, self.other = self, side
        for data in self.waiting:
            side.transport.write(data)


async def relay(port: int, upstream_port: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: RelayedConnection(upstream_port), "127.0.0.1", port)
    await server.serve_forever()
