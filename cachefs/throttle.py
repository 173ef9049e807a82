"""Log lines of which a lasting fault would make thousands: one of each kind in a while.

Owns what was logged when; knows nothing of what is logged."""

import time
from collections import Counter
from collections.abc import Callable, Hashable

QUIET = 5.0
"""Seconds in which a failure of one kind is logged once: a full disk fails thousands of requests
a second."""

_MOST = 1000


class Throttle:
    """What was logged when, by kind, and how often it was not. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[Hashable, float] = {}
        self._more: Counter[Hashable] = Counter()

    def more(self, kind: Hashable) -> str | None:
        """What to put at the end of a line of this *kind*: how many there would have been since the
        last, empty for none. None where the line is to be left out."""
        now = self._clock()
        if now - self._last.get(kind, -QUIET) < QUIET:
            self._more[kind] += 1
            return None
        if len(self._last) >= _MOST:
            self._last.clear()
            self._more.clear()
        self._last[kind] = now
        more = self._more.pop(kind, 0)
        return f", and {more} such failures since the last of these lines" if more else ""
