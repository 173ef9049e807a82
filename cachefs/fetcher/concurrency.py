"""Tasks, errors and threads side by side: how what happens in one reaches another.

No exception group leaves the fetcher (:func:`gather`), and the threads of a download report to the
event loop in batches (:class:`Reports`). Knows nothing of images or sources."""

from collections import deque
from collections.abc import Awaitable, Callable

import trio

PAUSE = 0.01
"""Seconds in which reports are gathered while nobody reads: a reader who comes just then waits as
long at most."""


async def gather(*tasks: Callable[[], Awaitable[None]]) -> None:
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


class Reports:
    """Stretches of bytes that have arrived, on their way from threads to *take*, which is called in
    the event loop that made this object.

    Waking the event loop, and all who wait there, for every megabyte of a fast source keeps the
    threads that receive it from the interpreter. Where nobody reads, it is woken :data:`PAUSE`
    after the first report of a batch; where a reader waits, at once.
    """

    def __init__(self, take: Callable[[int, int], None]) -> None:
        self._take = take
        self._token = trio.lowlevel.current_trio_token()
        self._stretches: deque[tuple[int, int]] = deque()
        self._awake = False
        self._word = trio.Event()

    def post(self, start: int, stop: int) -> None:
        """In any thread: the bytes [*start*, *stop*) have arrived."""
        self._stretches.append((start, stop))
        if not self._awake:  # else the listener looks again, after it has said it is not awake
            self._awake = True
            self._token.run_sync_soon(self.wake)

    def wake(self) -> None:
        """Have :meth:`listen` look again whether it is done."""
        self._word.set()

    def take_in(self) -> None:
        """Take all that was posted, now."""
        self._awake = False
        while self._stretches:
            self._take(*self._stretches.popleft())

    async def listen(self, done: Callable[[], bool], urgent: Callable[[], bool]) -> None:
        """Take what is posted until *done*; at once while it is *urgent*."""
        while not done():
            await self._word.wait()
            self._word = trio.Event()
            if not urgent():
                await trio.sleep(PAUSE)
            self.take_in()
