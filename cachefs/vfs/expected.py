"""Opens that the kernel is about to try once more, and what is kept open for them.

The kernel answers an ESTALE by one look-up of the name and one more open; a second ESTALE would be
the reader's (``do_filp_open`` in ``fs/namei.c``); so does it where it asks for a node's attributes
before it opens it. So after a request that was refused as stale, what the next look-up of that name
finds is kept open for a moment: it cannot be evicted between that look-up and the open that
follows. Owns those names, which are noted for the next worker of a mount
that outlives this one, and what is kept, which is noted, too: the open may come to the next worker.
Knows nothing of how it is opened. For the event loop."""

import heapq
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from cachefs.cache import Kept, Refusals, Refused

log = logging.getLogger(__name__)

KEPT_SECONDS = 1.0
"""For how long a refused name is remembered, and what its look-up finds is kept: longer than a
reader takes from one system call's step to the next, also on a busy machine."""

MOST_KEPT = 256
"""What is kept at once; one more, and what is kept longest is released. Each is a descriptor."""


class _Keeping(NamedTuple):
    until: float
    number: int
    release: Callable[[], None]
    kept: Kept | None


class Expected:
    """Names of which an open is expected, and what is kept for them. The names are noted in
    *refusals*, where another worker may follow."""

    def __init__(self, refusals: Refusals | None = None) -> None:
        self._refusals = refusals
        self._names: dict[str | None, float] = {}
        self._kept: list[_Keeping] = []
        self._numbers = itertools.count()
        self._any_until = 0.0
        self._filled = trio.Event()

    def refused(self, image_id: str | None) -> None:
        """An open was refused as stale; None where nobody knows of which image."""
        self._remember(image_id)
        self._note()

    def taken_over(self) -> Sequence[Kept]:
        """An open of any image may have been refused as stale by the worker before this one; those
        that it has noted were. Returns what it kept, which the kernel may be about to open."""
        self._any_until = trio.current_time() + KEPT_SECONDS
        if self._refusals is None:
            return ()
        noted = self._refusals.recent()
        for image_id in noted.image_ids:
            self._remember(image_id)
        return noted.kept

    def expects(self, image_id: str) -> bool:
        """Whether the kernel may be about to open this image once more."""
        return self._any_until > trio.current_time() or self.was_refused(image_id)

    def was_refused(self, image_id: str) -> bool:
        """Whether an open was refused a moment ago that can have been of this image."""
        if not self._names:
            return False
        until = max(self._names.get(image_id, 0.0), self._names.get(None, 0.0))
        return until > trio.current_time()

    def keep(self, release: Callable[[], None], kept: Kept | None = None) -> None:
        """Call *release* after a moment, or when too much is kept; till then the next worker is
        told of *kept*."""
        until = trio.current_time() + KEPT_SECONDS
        heapq.heappush(self._kept, _Keeping(until, next(self._numbers), release, kept))
        self._filled.set()
        if kept is not None:
            self._note()
        while len(self._kept) > MOST_KEPT:
            self._release_first()

    def close(self) -> None:
        """Keep nothing any more: the mount is gone."""
        while self._kept:
            self._release_first()

    @property
    def idle(self) -> bool:
        """Whether nothing is kept."""
        return not self._kept

    async def run(self) -> None:
        """Release what has been kept for long enough, until cancelled. What is kept then is the
        next worker's to keep, if there is one."""
        while True:
            await self._filled.wait()
            self._filled = trio.Event()
            while self._kept:
                await trio.sleep_until(self._kept[0].until)
                while self._kept and self._kept[0].until <= trio.current_time():
                    self._release_first()

    # Inside

    def _release_first(self) -> None:
        keeping = heapq.heappop(self._kept)
        keeping.release()
        if keeping.kept is not None:
            self._note()

    def _note(self) -> None:
        if self._refusals is None:
            return
        kept = tuple(each.kept for each in self._kept if each.kept is not None)
        try:
            self._refusals.note(Refused(tuple(self._names), kept))
        except OSError as error:
            log.debug("the next worker will not know of a refused open: %s", error)

    def _remember(self, image_id: str | None) -> None:
        now = trio.current_time()
        self._names = {name: until for name, until in self._names.items() if until > now}
        self._names[image_id] = now + KEPT_SECONDS
