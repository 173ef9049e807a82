"""Who goes first: fetches that somebody reads, then those that were only queued."""

from collections.abc import Callable

import trio


class Precedence:
    """Counts the fetches that are being read and not yet done; the others wait while there are any.

    For one event loop. Waiting is between requests to the source, so a queued fetch stops within
    one span.
    """

    def __init__(self) -> None:
        self._read = 0
        self._changed = trio.lowlevel.ParkingLot()

    def enter(self) -> None:
        """One more fetch is being read."""
        self._read += 1
        self._changed.unpark_all()  # it may have been waiting itself

    def leave(self) -> None:
        """One less."""
        self._read -= 1
        self._changed.unpark_all()

    def look_again(self) -> None:
        """What somebody waits for, other than the others, has come to pass."""
        self._changed.unpark_all()

    async def turn(self, need_not_wait: Callable[[], bool]) -> None:
        """Return once no fetch is being read, or *need_not_wait* says so: the caller's own is being
        read, or done."""
        while self._read and not need_not_wait():
            await self._changed.park()
