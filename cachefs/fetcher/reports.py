"""What the threads of a download report to the event loop, gathered.

Waking the event loop, and all who wait there, for every megabyte of a fast source keeps the threads
that receive it from the interpreter. Where nobody reads, it is woken :data:`PAUSE` after the first
report of a batch; where somebody does, at once."""

from collections import deque
from collections.abc import Callable

import trio

PAUSE = 0.01
"""Seconds in which reports are gathered while nobody reads: a reader who comes just then waits as
long at most."""


class Reports:
    """Stretches of bytes that have arrived, on their way to *take*, which is called in the event
    loop that made this object."""

    def __init__(self, take: Callable[[int, int], None]) -> None:
        self._take = take
        self._token = trio.lowlevel.current_trio_token()
        self._stretches: deque[tuple[int, int]] = deque()
        self._awake = False
        self._word = trio.Event()

    def post(self, start: int, stop: int) -> None:
        """In any thread: the bytes [*start*, *stop*) have arrived."""
        self._stretches.append((start, stop))
        if not self._awake:  # else whoever is awake looks again, after it has said it is not
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
