"""Send many requests to one upstream. Each gives a value or an error, and one failure does not affect the others."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from popi.errors import PopiError, UpstreamError
from popi.models.remote.upstream import Session, Upstream

Item = TypeVar("Item")
Value = TypeVar("Value")

GIVE_UP = 20
"""After this many consecutive items have failed despite retries, the server is assumed to be down."""


def send_all(
    upstream: Upstream,
    work: Callable[[Session, Item], Awaitable[Value]],
    items: Sequence[Item],
    on_result: Callable[[int, Value | PopiError], None] | None = None,
) -> list[Value | PopiError]:
    """Do `work` for every item, `upstream.concurrency` at a time.

    Once an error indicates that all further requests would fail (see UpstreamError.affects_all), or GIVE_UP consecutive
    items have failed despite retries, the items not yet started get that error without being sent.

    Args:
        upstream: the server.
        work: sends one item's requests; a PopiError that it raises becomes the item's result.
        items: the inputs.
        on_result: called with each item's index and result as soon as it is available, so that callers can save it.

    Returns:
        For each item, in the given order, its value or error.
    """
    results: dict[int, Value | PopiError] = {}
    waiting = iter(enumerate(items))
    stop: UpstreamError | None = None
    failures = 0

    async def worker(session: Session) -> None:
        nonlocal stop, failures
        for index, item in waiting:
            result: Value | PopiError
            try:
                if stop is not None:
                    raise stop
                result = await work(session, item)
                failures = 0
            except PopiError as error:
                result = error
                if isinstance(error, UpstreamError) and stop is None:
                    failures += error.transient
                    if error.affects_all or failures >= GIVE_UP:
                        stop = error
            results[index] = result
            if on_result is not None:
                on_result(index, result)

    async def all_of_them() -> None:
        async with upstream.session() as session:
            workers = [asyncio.create_task(worker(session)) for _ in range(min(upstream.concurrency, len(items)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for task in workers:
                    task.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    run(all_of_them())
    return [results[index] for index in range(len(items))]


def run(job: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to completion; in a separate thread if an event loop is already running, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(job)
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, job).result()
