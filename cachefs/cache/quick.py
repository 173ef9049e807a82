"""``QuickStore``: what an event loop may do with a cache by itself.

Owns no state but the count of evictions, and decides nothing. Each method costs a few system calls
or one look-up in the index, and takes no lock that is held across disk writes; but for one case of
:meth:`QuickStore.open_image`. Whatever else there is to do with a cache blocks, and is
:class:`~cachefs.cache.store.Store`'s, for threads."""

import logging
from collections.abc import Callable

from cachefs.cache.layout import Layout
from cachefs.cache.open_image import OpenImage, open_cached
from cachefs.cache.queue import Queue
from cachefs.drivers import Driver, Entry, Totals
from cachefs.errors import CacheFSError, ImageNotFoundError

log = logging.getLogger(__name__)


class QuickStore:
    """The part of a :class:`~cachefs.cache.store.Store` that any thread may call, an event loop's
    too. Made by the store, as ``store.quick``.

    *now* is the store's clock; *open_mended* opens an image of whose file and record only one was
    found, under the directory's lock.
    """

    def __init__(
        self,
        layout: Layout,
        driver: Driver,
        queue: Queue,
        *,
        now: Callable[[], float],
        open_mended: Callable[[str], OpenImage | None],
    ) -> None:
        self._layout = layout
        self._driver = driver
        self._queue = queue
        self._now = now
        self._open_mended = open_mended
        self.evictions = 0
        """Images evicted by this process; the store counts them."""

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

    # Doing

    def open_image(self, image_id: str) -> OpenImage:
        """Hold a cached image open for reading; counts no hit. Raises ImageNotFoundError.

        The descriptor shares a lock that every evictor of every process respects. An image that is
        being published or evicted at this moment is waited for: then, and only then, this takes the
        directory's lock."""
        image = open_cached(self._layout, self._driver, image_id)
        if image is None and self._driver.get(image_id) is not None:
            # Just being published or evicted, or amiss: under the lock it is one or the other.
            image = self._open_mended(image_id)
        if image is None:
            raise ImageNotFoundError(f"image {image_id!r} is not cached")
        return image

    def hit(self, image_id: str, count: int = 1) -> None:
        """Count so many uses, the last now; durable against the death of this process. With a
        *count* of 0 it is used now, and no more: a last close. What goes wrong is logged: no reader
        fails for a statistic."""
        try:
            self._driver.hit(image_id, self._now(), count)
        except (CacheFSError, OSError) as error:
            log.warning("could not count a hit of image %r: %s", image_id, error)

    def unqueue(self, image_id: str) -> bool:
        """Take an image out of the queue; False where it was not in it."""
        return self._queue.discard(image_id)
