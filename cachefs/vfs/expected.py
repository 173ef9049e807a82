"""Opens that the kernel is about to try once more, and what is kept open for them.

The kernel answers an ESTALE by one look-up of the name and one more open; a second ESTALE would be
the reader's (``do_filp_open`` in ``fs/namei.c``). So after an open that was refused as stale, what
the next look-up of that name finds is kept open for a moment: it cannot be evicted between that
look-up and the open that follows. Owns those names and what is kept, nothing of how it is opened.
For the event loop."""

import heapq
import itertools
from collections.abc import Callable, Iterable

import trio

KEPT_SECONDS = 1.0
"""For how long a refused name is remembered, and what its look-up finds is kept: longer than a
reader takes from one system call's step to the next, also on a busy machine."""

MOST_KEPT = 256
"""What is kept at once; one more, and what is kept longest is released. Each is a descriptor."""


class Expected:
    """Names of which an open is expected, and what is kept for them."""

    def __init__(self) -> None:
        self._names: dict[str | None, float] = {}
        self._kept: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._any_until = 0.0
        self._filled = trio.Event()

    def refused(self, image_id: str | None) -> None:
        """An open was refused as stale; None where nobody knows of which image."""
        now = trio.current_time()
        self._names = {name: until for name, until in self._names.items() if until > now}
        self._names[image_id] = now + KEPT_SECONDS

    def taken_over(self, refused: Iterable[str | None]) -> None:
        """An open of any image may have been refused as stale by the worker before this one; those
        of *refused* were."""
        self._any_until = trio.current_time() + KEPT_SECONDS
        for image_id in refused:
            self.refused(image_id)

    @property
    def names(self) -> list[str | None]:
        """Those of which an open was refused a moment ago."""
        return list(self._names)

    def expects(self, image_id: str) -> bool:
        """Whether the kernel may be about to open this image once more."""
        return self._any_until > trio.current_time() or self.was_refused(image_id)

    def was_refused(self, image_id: str) -> bool:
        """Whether an open was refused a moment ago that can have been of this image."""
        if not self._names:
            return False
        until = max(self._names.get(image_id, 0.0), self._names.get(None, 0.0))
        return until > trio.current_time()

    def keep(self, release: Callable[[], None]) -> None:
        """Call *release* after a moment, or when too much is kept."""
        until = trio.current_time() + KEPT_SECONDS
        heapq.heappush(self._kept, (until, next(self._numbers), release))
        self._filled.set()
        while len(self._kept) > MOST_KEPT:
            heapq.heappop(self._kept)[2]()

    def close(self) -> None:
        """Keep nothing any more."""
        while self._kept:
            heapq.heappop(self._kept)[2]()

    @property
    def idle(self) -> bool:
        """Whether nothing is kept."""
        return not self._kept

    async def run(self) -> None:
        """Release what has been kept for long enough, until cancelled; all of it then."""
        try:
            while True:
                await self._filled.wait()
                self._filled = trio.Event()
                while self._kept:
                    await trio.sleep_until(self._kept[0][0])
                    while self._kept and self._kept[0][0] <= trio.current_time():
                        heapq.heappop(self._kept)[2]()
        finally:
            self.close()
