"""Running tasks side by side whose errors stay single: no exception group leaves the fetcher."""

from collections.abc import Awaitable, Callable

import trio


async def together(*tasks: Callable[[], Awaitable[None]]) -> None:
    """Run *tasks* until all have returned. The first error cancels the others and is raised
    alone; a cancellation cancels all."""
    errors: list[Exception] = []

    async def guard(task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except Exception as error:  # noqa: BLE001 - raised below, out of the nursery
            errors.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(guard, task)
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # no cycle of errors and frames keeps anything open
