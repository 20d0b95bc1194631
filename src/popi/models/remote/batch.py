"""Many requests to one upstream: each ends as a value or as an error, and none takes the others with it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from popi.errors import BatchError, PopiError, UpstreamError
from popi.models.remote.upstream import Session, Upstream

Item = TypeVar("Item")
Value = TypeVar("Value")

GIVE_UP = 20
"""So many items in a row failed in spite of retries: the server is down, and the rest is not sent."""


def send_all(
    upstream: Upstream,
    work: Callable[[Session, Item], Awaitable[Value]],
    items: Sequence[Item],
    on_result: Callable[[int, Value | PopiError], None] | None = None,
) -> list[Value | PopiError]:
    """Do `work` for every item, `upstream.concurrency` at a time.

    Once an error says that all further requests would fail (see UpstreamError.for_all), or GIVE_UP items in a row
    failed in spite of retries, the items not yet begun get that error without being sent.

    Args:
        upstream: what is asked.
        work: one item's requests; what it raises as PopiError becomes the item's result.
        items: the inputs.
        on_result: told each item's index and result as soon as it is there: what is kept if the process is killed.

    Returns:
        For each item, in the order given, its value or the error in its place.
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
                    failures += error.passing
                    if error.for_all or failures >= GIVE_UP:
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


def values(results: Sequence[Value | PopiError]) -> list[Value]:
    """The values of a batch.

    Raises:
        BatchError: some are errors; it holds all results.
    """
    good = [result for result in results if not isinstance(result, PopiError)]
    if len(good) < len(results):
        raise BatchError(list(results))
    return good


def run(job: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end; in a notebook, where an event loop runs already, in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(job)
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, job).result()
