"""Opens that the kernel is about to try once more, and what is kept open for them.

The kernel answers an ESTALE by one look-up of the name and one more open; a second ESTALE would be
the reader's (``do_filp_open`` in ``fs/namei.c``). So after an open that was refused as stale, what
the next look-up of that name finds is kept open for a moment: it cannot be evicted between that
look-up and the open that follows. Owns those names, which are noted for the next worker of a mount
that outlives this one, and what is kept; nothing of how it is opened. For the event loop."""

import heapq
import itertools
import logging
from collections.abc import Callable

import trio

from cachefs.cache import Refusals

log = logging.getLogger(__name__)

KEPT_SECONDS = 1.0
"""For how long a refused name is remembered, and what its look-up finds is kept: longer than a
reader takes from one system call's step to the next, also on a busy machine."""

MOST_KEPT = 256
"""What is kept at once; one more, and what is kept longest is released. Each is a descriptor."""


class Expected:
    """Names of which an open is expected, and what is kept for them. The names are noted in
    *refusals*, where another worker may follow."""

    def __init__(self, refusals: Refusals | None = None) -> None:
        self._refusals = refusals
        self._names: dict[str | None, float] = {}
        self._kept: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._any_until = 0.0
        self._filled = trio.Event()

    def refused(self, image_id: str | None) -> None:
        """An open was refused as stale; None where nobody knows of which image."""
        self._remember(image_id)
        if self._refusals is not None:
            try:
                self._refusals.note(list(self._names))
            except OSError as error:
                log.debug("the next worker will not know of a refused open: %s", error)

    def taken_over(self) -> None:
        """An open of any image may have been refused as stale by the worker before this one; those
        that it has noted were."""
        self._any_until = trio.current_time() + KEPT_SECONDS
        if self._refusals is not None:
            for image_id in self._refusals.recent():
                self._remember(image_id)

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

    # Inside

    def _remember(self, image_id: str | None) -> None:
        now = trio.current_time()
        self._names = {name: until for name, until in self._names.items() if until > now}
        self._names[image_id] = now + KEPT_SECONDS
