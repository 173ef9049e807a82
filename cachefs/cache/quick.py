"""``QuickStore``: what an event loop may do with a cache by itself.

Owns no state but the count of evictions, and decides nothing. Each method costs a few system calls
or one look-up in the index, and waits for no lock of another thread or process: where it would have
to, it raises :class:`~cachefs.errors.IndexBusyError`, and the same method of :attr:`QuickStore.
waiting` is to be called, in a thread. Whatever else there is to do with a cache blocks, and is
:class:`~cachefs.cache.store.Store`'s, for threads."""

import logging
from collections.abc import Callable
from typing import Protocol

from cachefs.cache.layout import Layout
from cachefs.cache.open_image import OpenImage, open_cached
from cachefs.cache.queue import Queue
from cachefs.drivers import Entry, QuickDriver, Totals
from cachefs.errors import CacheFSError, ImageNotFoundError, IndexBusyError

log = logging.getLogger(__name__)


class Waiting(Protocol):
    """The methods of :class:`QuickStore` for threads: they wait, and raise no IndexBusyError, but
    for :meth:`hit`."""

    def get(self, image_id: str) -> Entry | None:
        """See :meth:`QuickStore.get`."""

    def by_inode(self, number: int) -> Entry | None:
        """See :meth:`QuickStore.by_inode`."""

    def page(self, after_inode: int, limit: int) -> list[Entry]:
        """See :meth:`QuickStore.page`."""

    def open_image(self, image_id: str) -> OpenImage:
        """See :meth:`QuickStore.open_image`."""

    def hit(self, image_id: str, when: float, count: int = 1) -> None:
        """See :meth:`QuickStore.write_hits`."""

    def tidy(self) -> bool:
        """Keep the index's log short; False where a reader of another process keeps it from
        that."""


class QuickStore:
    """The part of a :class:`~cachefs.cache.store.Store` that any thread may call, an event loop's
    too. Made by the store, as ``store.quick``; *waiting* is the store, *now* its clock."""

    def __init__(
        self,
        layout: Layout,
        driver: QuickDriver,
        queue: Queue,
        *,
        now: Callable[[], float],
        waiting: Waiting,
    ) -> None:
        self._layout = layout
        self._driver = driver
        self._queue = queue
        self._gather: Callable[[str], None] | None = None
        self.now = now
        self.waiting = waiting
        self.evictions = 0
        """Images evicted by this process; :mod:`cachefs.cache.eviction` counts them."""

    # What there is

    def get(self, image_id: str) -> Entry | None:
        """The record of a cached image."""
        return self._driver.get(image_id)

    def by_inode(self, number: int) -> Entry | None:
        """The record of the cached image with this inode number."""
        return self._driver.by_inode(number)

    def page(self, after_inode: int, limit: int) -> list[Entry]:
        """At most *limit* records with inode numbers above *after_inode*, in that order; fewer are
        the last."""
        return self._driver.entries_after(after_inode, limit)

    def totals(self) -> Totals:
        """Number and bytes of the cached images."""
        return self._driver.totals()

    def is_queued(self, image_id: str) -> bool:
        """Whether the image waits to be fetched."""
        return image_id in self._queue

    @property
    def is_untidy(self) -> bool:
        """Whether :meth:`Waiting.tidy` is due."""
        return self._driver.is_untidy

    # Doing

    def open_image(self, image_id: str) -> OpenImage:
        """Hold a cached image open for reading; counts no hit. Raises ImageNotFoundError.

        The descriptor shares a lock that every evictor of every process respects. Raises
        IndexBusyError, too, for an image that is being published or evicted at this moment, and for
        one whose file is another than its record speaks of: in a thread they are waited for, and
        checked."""
        image = open_cached(self._layout, self._driver, image_id)
        if image is None:
            if self._driver.get(image_id) is not None:
                raise IndexBusyError(f"image {image_id!r} is to be looked at under the lock")
            raise ImageNotFoundError(f"image {image_id!r} is not cached")
        return image

    def hit(self, image_id: str) -> None:
        """Count one use, now: by what :meth:`gather_hits` has named, else written at once, and then
        what goes wrong is logged: no reader fails for a statistic."""
        if self._gather is not None:
            self._gather(image_id)
            return
        try:
            self.write_hits(image_id, self.now())
        except (CacheFSError, OSError) as error:
            log.warning("could not count a hit of image %r: %s", image_id, error)

    def gather_hits(self, gather: Callable[[str], None]) -> None:
        """Have the IDs given to :meth:`hit` go to *gather*, which writes them later."""
        self._gather = gather

    def write_hits(self, image_id: str, when: float, count: int = 1) -> None:
        """Write so many uses, the last at *when*; durable against the death of this process."""
        self._driver.hit(image_id, when, count)

    def unqueue(self, image_id: str) -> bool:
        """Take an image out of the queue; False where it was not in it."""
        return self._queue.discard(image_id)
