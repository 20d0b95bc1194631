"""Cancel the work on a request whose client has hung up."""

import asyncio

from starlette.types import Receive


class Watch:
    """Between `begin` and `end`, cancels the task that created it if the client hangs up."""

    __slots__ = ("_gone", "_task", "_watching")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._watching: asyncio.Task[None] | None = None
        self._gone = False

    def begin(self, receive: Receive) -> None:
        """Start watching. The request's body must have been read: the next message is then the disconnect."""
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._wait(receive))

    def client_gone(self) -> bool:
        """Whether this caused the current cancellation; if so, clears it."""
        if self._gone and self._task is not None:
            return self._task.uncancel() == 0
        return False

    def end(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._task = None

    async def _wait(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self._gone = True
            self._task.cancel()
