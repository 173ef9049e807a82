"""Bandwidth limits: a bucket of bytes that fills at a steady rate, for threads."""

import threading
import time
from collections.abc import Callable

BURST = 0.1
"""Seconds' worth of bytes that may be taken at once."""


class Bandwidth:
    """A limit of *rate* bytes per second over all who share it; None is no limit. Thread-safe."""

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
