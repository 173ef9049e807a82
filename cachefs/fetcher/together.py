"""Running tasks side by side whose errors stay single: no exception group leaves the fetcher."""

from collections.abc import Awaitable, Callable

import trio

from cachefs.errors import CacheFSError


async def together(*tasks: Callable[[], Awaitable[None]]) -> None:
    """Run *tasks* until all have returned. The first CacheFSError or OSError cancels the others and
    is raised alone; a cancellation cancels all."""
    errors: list[Exception] = []

    async def guard(task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except (CacheFSError, OSError) as error:
            errors.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(guard, task)
    if errors:
        raise errors[0]
