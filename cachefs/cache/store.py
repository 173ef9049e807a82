"""The cache of one directory: what is cached, queued, failed; begin, open, evict, clean.

Owns the lock under which every decision about the directory is made, and is the one way to what
makes them: what leaves is :mod:`cachefs.cache.eviction`'s, what is published or rejected
:mod:`cachefs.cache.publishing`'s, what is queued, failed or to be pinned
:mod:`cachefs.cache.wanted`'s, whether a file is still its image :mod:`cachefs.cache.checking`'s.
Knows neither trio nor FUSE nor where images come from. All methods of :class:`Store` block: they
are for threads, any of them. What an event loop may call is :attr:`Store.quick`
(:mod:`cachefs.cache.quick`).

Several processes may use one directory. What is reserved, held open, queued or failed is on the
disk (file lengths, file locks, files), not in memory."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cachefs.cache.capacity import Capacity, Limits, Usage
from cachefs.cache.checking import Checker
from cachefs.cache.claim import claim
from cachefs.cache.eviction import Eviction
from cachefs.cache.foreign_hits import take_over_hits
from cachefs.cache.incomplete import abandoned_images, drop_stalled, written_images
from cachefs.cache.layout import Layout
from cachefs.cache.lease import is_being_written
from cachefs.cache.lock import DirectoryLock
from cachefs.cache.mend import reconcile
from cachefs.cache.open_image import OpenImage, open_cached
from cachefs.cache.overhead import Overhead
from cachefs.cache.partial import Version
from cachefs.cache.publishing import Publishing
from cachefs.cache.queue import Failure
from cachefs.cache.quick import QuickStore
from cachefs.cache.transaction import Transaction
from cachefs.cache.wanted import Wanted
from cachefs.drivers import Driver, Entry, GlanceRecord, Totals, open_driver
from cachefs.errors import (
    CacheFSError,
    ImageBusyError,
    ImageExistsError,
    ImageNotFoundError,
    IndexBusyError,
    NoRoomError,
)
from cachefs.image import check_image_id

log = logging.getLogger(__name__)

USAGE_PATIENCE = 0.2
"""Seconds for which what shows the room taken waits for the lock holder to be done."""


class Store:
    """The cache in *cache_dir*, made if it is missing, reconciled before anything else.

    Raises CacheDirectoryError for a directory that is no cache and may not become one (see
    :mod:`cachefs.cache.claim`; *adopt* takes any), DriverError when no driver works there, OSError
    when the directory cannot be made.
    """

    def __init__(
        self,
        cache_dir: Path,
        limits: Limits,
        *,
        driver: str = "sqlite",
        adopt: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._layout = Layout(cache_dir)
        claim(self._layout, adopt=adopt)
        self._clock = clock
        self._last_now = 0.0
        self._stamps = threading.Lock()
        self._room: list[Callable[[], None]] = []
        self._lock = DirectoryLock(
            self._layout.lock_file, restore=self._restore, is_whole=self._layout.is_whole
        )
        try:
            with self._lock:
                self._driver: Driver = open_driver(driver, cache_dir)
                self._wanted = Wanted(self._layout, self._driver, self.now)
                self._overhead = Overhead(self._layout, self._driver)
                self.quick = QuickStore(
                    self._layout,
                    self._driver.quick,
                    self._wanted.queue,
                    now=self.now,
                    waiting=self,
                )
                capacity = Capacity(self._layout, self._driver)
                self._eviction = Eviction(self._layout, self._driver, capacity, self.quick, limits)
                self._checker = Checker(
                    self._layout,
                    self._driver,
                    self._lock,
                    reject=self._wanted.reject,
                    repin=self._wanted.pins.add,
                    gone=self._eviction.tell_gone,
                )
                self._publishing = Publishing(
                    self._layout,
                    self._driver,
                    self._lock,
                    checker=self._checker,
                    eviction=self._eviction,
                    wanted=self._wanted,
                    now=self.now,
                )
                try:
                    reconcile(self._layout, self._driver, self._wanted.queue, self._wanted.failures)
                    take_over_hits(self._layout, self._driver)
                    self._wanted.apply_pins()
                except BaseException:
                    self._driver.close()
                    raise
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Let go of the driver and the lock. Open images and transactions are their owners'."""
        self._driver.close()
        self._lock.close()

    def _restore(self) -> None:
        """The directory, or a part of it, has been removed under us: it is a cache again, and what
        is missing is empty. Raises CacheDirectoryError where something else has its place by
        now."""
        log.error("%s was removed, or a part of it: making it anew", self._layout.base)
        claim(self._layout)

    def now(self) -> float:
        """Seconds since the epoch, later than any answer before: LRU order knows no ties."""
        with self._stamps:
            self._last_now = max(self._clock(), self._last_now + 1e-6)
            return self._last_now

    @property
    def cache_dir(self) -> Path:
        """The directory."""
        return self._layout.base

    @property
    def driver_name(self) -> str:
        """The driver that runs: ``sqlite`` or ``xattr``."""
        return self._driver.name

    @property
    def limits(self) -> Limits:
        """What the cache may take; new ones hold from the next reservation or :meth:`prune` on."""
        return self._eviction.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._eviction.limits = limits
        self.room_changed()

    def on_room(self, listener: Callable[[], None]) -> None:
        """Call *listener*, in any thread, whenever room may be had that could not be had before: an
        image was closed, unpinned or removed, or a limit was raised. It must not wait. What another
        process gives back it does not hear of."""
        self._room.append(listener)

    def room_changed(self) -> None:
        """Tell the listeners of :meth:`on_room`; also for a caller who has closed images."""
        for listener in self._room:
            listener()

    def before_choosing(self, listener: Callable[[], None]) -> None:
        """Call *listener*, in the evicting thread and under the lock, before the least recently
        used images are looked for; it writes what the index does not know of their use, and may
        wait for the index as the eviction after it does, but for no other lock's holder."""
        self._eviction.before_choosing.append(listener)

    def on_evicting(self, listener: Callable[[Entry], None]) -> None:
        """Call *listener*, in the evicting thread and under the lock, for every image about to
        leave, while its file has its name."""
        self._eviction.on_evicting.append(listener)

    def on_stayed(self, listener: Callable[[Entry], None]) -> None:
        """Call *listener*, in the evicting thread and under the lock, for every image that
        :meth:`on_evicting` has told of and that could not be removed."""
        self._eviction.on_stayed.append(listener)

    def on_evicted(self, listener: Callable[[Entry], None]) -> None:
        """Call *listener*, in the evicting thread and under the lock, for every image that
        leaves."""
        self._eviction.on_evicted.append(listener)

    # What there is

    def is_cached(self, image_id: str) -> bool:
        """Whether the image is cached. Unlike :meth:`get` it looks at the file too, and mends what
        it finds amiss; a file that is another than its record speaks of is compared with its
        digest."""
        return self._checker.settle(image_id) is not None

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

    def entries(self) -> Iterator[Entry]:
        """The records of all cached images, by ID."""
        return self._driver.entries()

    def glance_records(self) -> list[GlanceRecord]:
        """What Glance records of each cached image, by ID."""
        return self._driver.glance_records()

    def pinned(self) -> list[Entry]:
        """The records of the pinned images, by ID."""
        return list(self._driver.pinned())

    def usage(self) -> Usage:
        """The room taken, in bytes. Waits no longer than a moment for the lock: where its holder
        takes longer, what it has half done counts as it is."""
        with self._lock.within(USAGE_PATIENCE):
            return self._eviction.usage()

    def index_bytes(self) -> int:
        """The room that the index and ``.cachefs/`` take on the disk besides, in bytes. The index
        as it is now, the rest as it was within the last seconds: cheap enough to be polled."""
        return self._overhead.bytes()

    def tidy(self) -> bool:
        """Keep the index's log short; False where a reader of another process keeps it from
        that."""
        return self._driver.tidy()

    def is_being_written(self, image_id: str) -> bool:
        """Whether a living writer, in any process, is caching the image."""
        return is_being_written(self._layout.incomplete(image_id)) or is_being_written(
            self._layout.beside(image_id)
        )

    def incomplete(self) -> Iterator[tuple[str, os.stat_result]]:
        """The images being written by any process, with their files' stat."""
        return written_images(self._layout)

    # Reading

    def open_image(self, image_id: str) -> OpenImage:
        """Hold a cached image open for reading; counts no hit. What is being published or evicted
        at this moment is waited for; a file that is another than its record speaks of is compared
        with its digest first. Raises ImageNotFoundError."""
        for _ in range(3):  # between the look and the open it may become another once more
            image = open_cached(self._layout, self._driver, image_id)
            if image is not None:
                return image
            if self._checker.settle(image_id) is None:
                break
            with self._lock:
                image = open_cached(self._layout, self._driver, image_id)
            if image is not None:
                return image
        raise ImageNotFoundError(f"image {image_id!r} is not cached")

    def hit(self, image_id: str, when: float, count: int = 1) -> None:
        """Count so many uses, the last at *when*; durable against the death of this process. Raises
        IndexBusyError where the index is locked for long; whatever else goes wrong is logged: no
        reader fails for a statistic."""
        try:
            self._driver.hit(image_id, when, count)
        except IndexBusyError:
            raise
        except NoRoomError as error:
            raise IndexBusyError(str(error)) from error
        except (CacheFSError, OSError) as error:
            log.warning("could not count a hit of image %r: %s", image_id, error)

    # Writing

    def begin(
        self,
        image_id: str,
        size: int | None = None,
        version: Version | None = None,
        *,
        beside: bool = False,
        although_cached: bool = False,
    ) -> Transaction:
        """Start caching an image of *size* bytes, or of a size nobody knows yet.

        With *version* the transaction has a map, and goes on where an earlier one of surely the
        same version left off. Room is made and reserved first, evicting as needed. Raises
        ImageExistsError when it is cached (unless *although_cached*), ImageBusyError while another
        writer lives, NoRoomError when it cannot fit: then nothing was evicted for it.

        With *beside* another writer, a Glance say, is none of our business: it goes on, and so do
        we, in a file of our own. Which of the two publishes first has cached the image."""
        check_image_id(image_id)
        return self._publishing.begin(
            image_id, size, version, beside=beside, although_cached=although_cached
        )

    def abandoned(self) -> list[str]:
        """The incomplete images that can be gone on with and that nobody writes."""
        return abandoned_images(self._layout)

    def fitting(self, sizes: Mapping[str, int]) -> set[str]:
        """Which of the images, each of so many bytes, would have room now, were it the only one;
        evicts nothing. One look for all: an image for which nothing else would be enough is told to
        fit where its own left bytes make the difference."""
        with self._lock:
            return self._eviction.fitting(sizes)

    # Failures

    def fail(
        self,
        image_id: str,
        error: BaseException,
        *,
        source: str | None = None,
        size: int = 0,
        version: str | None = None,
    ) -> None:
        """Remember that the image could not be had, and why; it leaves the queue. *version* is the
        caller's name for the bytes that were wrong."""
        with self._lock:  # so that nobody queues it meanwhile, whose wish would be lost
            self._wanted.fail(image_id, error, source=source, size=size, version=version)

    def failure(self, image_id: str) -> Failure | None:
        """Why the image could not be had, or None where it has not failed."""
        return self._wanted.failures.get(image_id)

    def failed_ids(self) -> list[str]:
        """The images that could not be had, sorted."""
        return self._wanted.failures.ids()

    def forget_failure(self, image_id: str) -> bool:
        """Forget the failure and remove its bytes; False where there was none."""
        known = self._wanted.failures.discard(image_id)
        self.room_changed()
        return known

    # Queueing

    def queued_ids(self) -> list[str]:
        """The queued images, higher priority first, then in order of queueing."""
        return self._wanted.queue.ids()

    def queued_since(self, image_id: str) -> float | None:
        """When the image was queued, in seconds since the epoch; None where it is not queued."""
        return self._wanted.queue.since(image_id)

    def priority(self, image_id: str) -> int:
        """The priority of a queued image; 0 unless it was set."""
        return self._wanted.queue.priority(image_id)

    def set_priority(self, image_id: str, priority: int) -> bool:
        """Have a queued image fetched before those of lower priority; durable. False, and nothing
        is done, where it is not queued."""
        with self._lock:
            return self._wanted.set_priority(image_id, priority)

    def unqueue(self, image_id: str) -> bool:
        """Take an image out of the queue; False where it was not in it."""
        return self._wanted.queue.discard(image_id)

    def requeue_abandoned(self) -> None:
        """Queue the images that :meth:`abandoned` lists."""
        with self._lock:
            for image_id in self.abandoned():
                if self._driver.get(image_id) is None:
                    self._wanted.queue.add(image_id)

    def enqueue(self, image_id: str) -> bool:
        """Queue an image; False where it is queued already. An earlier failure is forgotten.

        Raises ImageExistsError when it is cached or being written.
        """
        check_image_id(image_id)
        self._checker.settle(image_id)
        with self._lock:  # so that nobody publishes it meanwhile
            if self._checker.mend(image_id) is not None:
                raise ImageExistsError(f"image {image_id!r} is cached already")
            if self.is_being_written(image_id):
                raise ImageExistsError(f"image {image_id!r} is being cached already")
            queued = self._wanted.enqueue(image_id)
        self.room_changed()  # of the bytes in invalid/
        return queued

    # Evicting

    def pin(self, image_id: str, pinned: bool) -> None:
        """Keep a cached image from eviction, or no longer. Raises ImageNotFoundError."""
        with self._lock:
            if not self._driver.set_pinned(image_id, pinned):
                raise ImageNotFoundError(f"image {image_id!r} is not cached")
        if not pinned:
            self.room_changed()

    def pin_when_cached(self, image_id: str) -> bool:
        """Pin an image, at once where it is cached, else when it is: durable, and true of whichever
        process caches it. Till then it is queued, also while it is being written: a reader that
        leaves does not end its fetch. True where it is pinned now."""
        check_image_id(image_id)
        with self._lock:  # so that nobody publishes it meanwhile
            if self._checker.mend(image_id) is not None and self._driver.set_pinned(image_id, True):
                return True
            self._wanted.pins.add(image_id)
            self._wanted.enqueue(image_id)
        self.room_changed()
        return False

    def unpin(self, image_id: str) -> None:
        """Pin an image no longer, nor when it is cached. Raises ImageNotFoundError where neither
        was so."""
        with self._lock:
            self._wanted.unpin(image_id)
        self.room_changed()

    def to_be_pinned(self) -> list[str]:
        """The images that :meth:`pin_when_cached` waits for, sorted."""
        return self._wanted.pins.ids()

    def is_to_be_pinned(self, image_id: str) -> bool:
        """Whether the image is one of :meth:`to_be_pinned`."""
        return image_id in self._wanted.pins

    def evict(self, image_id: str, *, force: bool = False) -> Entry:
        """Remove a cached image. A reader that has it open reads on; its room is back when the
        file is closed.

        Raises ImageNotFoundError, and ImageBusyError for a pinned image unless *force*.
        """
        with self._lock:
            entry = self._checker.mend(image_id)
            if entry is None:
                raise ImageNotFoundError(f"image {image_id!r} is not cached")
            if entry.pinned and not force:
                raise ImageBusyError(f"image {image_id!r} is pinned")
            self._eviction.remove(entry)
        self.room_changed()
        return entry

    def prune(self) -> tuple[int, int]:
        """Drop the least recently used images until the limits hold again: (images, bytes)
        dropped. What cannot be removed is logged, and the next goes instead."""
        with self._lock:
            self._wanted.apply_pins()
            dropped = self._eviction.keep_limits()
        self.room_changed()  # also where none was an image
        return dropped

    def clean(self, stall_time: float) -> tuple[int, int]:
        """Remove all failures with their bytes, and what :meth:`clean_stalled` does. Returns the
        numbers (invalid, stalled) removed."""
        with self._lock:
            invalid = self._wanted.clear_failures()
        return invalid, self.clean_stalled(stall_time)

    def clean_stalled(self, stall_time: float) -> int:
        """Remove incomplete files that nobody writes and nobody has written for *stall_time*
        seconds."""
        with self._lock:
            stalled = drop_stalled(self._layout, self._clock() - stall_time)
        self.room_changed()
        return stalled
