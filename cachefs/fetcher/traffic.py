"""What all fetches of a daemon share: bandwidth limits, and which fetch goes first.

Knows nothing of images, chunks or sources."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from cachefs.fetcher.room import Room

BURST = 0.1
"""Seconds' worth of bytes that may be taken at once."""


class Bandwidth:
    """A limit of *rate* bytes per second over all who share it, as a bucket of bytes that fills at
    a steady rate; None is no limit. Thread-safe, for threads."""

    def __init__(self, rate: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int) -> float:
        """Take *count* bytes; the seconds to wait before taking more, so that the rate holds."""
        rate = self.rate
        if rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - BURST) + count / rate
            return max(0.0, self._free_at - now)


class Precedence:
    """Fetches that a reader waits for go first, then those that were only queued: counts the
    fetches that are being read and not yet done; the others wait while there are any.

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
        """Have those that wait ask their *need_not_wait* again."""
        self._changed.unpark_all()

    async def turn(self, need_not_wait: Callable[[], bool]) -> None:
        """Return once no fetch is being read, or *need_not_wait* says so: the caller's own is being
        read, or done."""
        while self._read and not need_not_wait():
            await self._changed.park()


@dataclass(frozen=True, slots=True)
class Traffic:
    """What all fetches of a daemon share: limits for all and for queued ones alone, who goes first,
    who waits for room, and how many threads may wait for the disk. Those that wait for a source are
    each image's own, so that a source that stalls holds up nobody else."""

    everything: Bandwidth
    prefetch: Bandwidth
    precedence: Precedence
    disk: trio.CapacityLimiter
    room: Room
