"""The cache of one directory: what is cached, queued, failed; begin, open, evict, clean.

Owns every decision about the directory and the lock under which they are made; knows neither trio
nor FUSE nor where images come from. All methods of :class:`Store` block: they are for threads, any
of them. What an event loop may call is :attr:`Store.quick` (:mod:`cachefs.cache.quick`).

Several processes may use one directory. What is reserved, held open, queued or failed is on the
disk (file lengths, file locks, files), not in memory."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from cachefs.cache.capacity import Candidate, Capacity, Limits, Usage
from cachefs.cache.checking import Checker
from cachefs.cache.claim import claim
from cachefs.cache.foreign_hits import take_over_hits
from cachefs.cache.layout import Layout, check_removable, files_in, sync_directory
from cachefs.cache.lease import is_being_written
from cachefs.cache.lock import DirectoryLock, is_left, owned, share
from cachefs.cache.mend import reconcile
from cachefs.cache.open_image import OpenImage, open_cached
from cachefs.cache.overhead import Overhead
from cachefs.cache.partial import Version
from cachefs.cache.pins import Pins
from cachefs.cache.queue import Failure, Failures, Queue
from cachefs.cache.quick import QuickStore
from cachefs.cache.shortage import describe_shortage
from cachefs.cache.transaction import (
    Transaction,
    abandoned_map,
    is_at,
    new_map,
    open_incomplete,
)
from cachefs.cache.trust import is_other_kind, remove, what_stands_at
from cachefs.drivers import Driver, Entry, GlanceRecord, Totals, open_driver
from cachefs.errors import (
    CacheFSError,
    ImageBusyError,
    ImageExistsError,
    ImageNotFoundError,
    ImageTooLargeError,
    IndexBusyError,
    NoRoomError,
)
from cachefs.image import check_image_id
from cachefs.units import human_size

log = logging.getLogger(__name__)

AHEAD_SHARE = 64
"""A writer that does not know its image's size reserves at most this fraction of the free room
ahead, so that all writers together leave most of it to others."""


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
        self._limits = limits
        self._queue = Queue(self._layout)
        self._failures = Failures(self._layout)
        self._pins = Pins(self._layout)
        self._clock = clock
        self._last_now = 0.0
        self._stamps = threading.Lock()
        self._evicting: list[Callable[[Entry], None]] = []
        self._evicted: list[Callable[[Entry], None]] = []
        self._room: list[Callable[[], None]] = []
        self._lock = DirectoryLock(self._layout.lock_file)
        try:
            with self._lock:
                self._driver: Driver = open_driver(driver, cache_dir)
                self._capacity = Capacity(self._layout, self._driver)
                self._overhead = Overhead(self._layout, self._driver)
                self.quick = QuickStore(
                    self._layout,
                    self._driver.quick,
                    self._queue,
                    now=self.now,
                    waiting=self,
                )
                self._checker = Checker(
                    self._layout, self._driver, self._lock, reject=self.reject, gone=self._tell
                )
                try:
                    reconcile(self._layout, self._driver, self._queue, self._failures)
                    take_over_hits(self._layout, self._driver)
                    self._apply_pins()
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
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self.room_changed()

    def on_room(self, listener: Callable[[], None]) -> None:
        """Call *listener*, in any thread, whenever room may be had that could not be had before: an
        image was closed, unpinned or removed, or a limit was raised. It must not wait. What another
        process gives back it does not hear of."""
        self._room.append(listener)

    def room_changed(self) -> None:
        """Tell the listeners of :meth:`on_room`; also for whoever closes images."""
        for listener in self._room:
            listener()

    def on_evicting(self, listener: Callable[[Entry], None]) -> None:
        """Call *listener*, in the evicting thread and under the lock, for every image about to
        leave, while its file has its name."""
        self._evicting.append(listener)

    def on_evicted(self, listener: Callable[[Entry], None]) -> None:
        """Call *listener*, in the evicting thread and under the lock, for every image that
        leaves."""
        self._evicted.append(listener)

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
        """The room taken, in bytes. Waits for no lock: while the lock holder is at it, what it has
        half done counts as it is."""
        return self._capacity.usage(self._limits)

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
        return is_being_written(self._layout.incomplete(image_id))

    def incomplete(self) -> Iterator[tuple[str, os.stat_result]]:
        """The images being written by any process, with their files' stat."""
        for name, status in files_in(self._layout.incomplete_dir):
            if self.is_being_written(name):
                yield name, status

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
        self._checker.settle(image_id)
        ordinary = self._layout.incomplete(image_id), self._layout.map(image_id)
        aside = self._layout.beside(image_id), self._layout.beside_map(image_id)
        with self._lock:
            if self._checker.mend(image_id) is not None and not although_cached:
                raise ImageExistsError(f"image {image_id!r} is cached already")
            if beside and aside[0].exists():  # an earlier worker's, for readers that are still here
                with contextlib.suppress(ImageBusyError):
                    return self._start(*aside, size, version)
            try:
                return self._start(*ordinary, size, version)
            except ImageBusyError:
                if not beside:
                    raise
            except OSError as error:
                if not is_other_kind(error):
                    raise
                log.warning("%s cannot be written, writing beside it: %s", ordinary[0], error)
            return self._start(*aside, size, version)

    def _start(
        self, path: Path, map_path: Path, size: int | None, version: Version | None
    ) -> Transaction:
        if is_left(path):  # what its killed writer may still write goes to a nameless file
            _drop_partial(path, map_path)
        earlier = abandoned_map(path, map_path, version) if version else None
        try:
            fd = open_incomplete(path, map_path, keep=earlier is not None)
        except BaseException:
            if earlier is not None:
                earlier.close()
            raise
        transaction = Transaction(self, path, fd, size, earlier)
        try:
            transaction.reserve(size or 0)
            if version is not None and earlier is None:
                transaction.partial = new_map(map_path, version)
        except BaseException:
            transaction.abort()
            raise
        return transaction

    def abandoned(self) -> list[str]:
        """The incomplete images that can be gone on with and that nobody writes."""
        names = [name for name, _ in files_in(self._layout.maps_dir)]
        return sorted(
            name
            for name in names
            if self._layout.incomplete(name).exists() and not self.is_being_written(name)
        )

    def reserve(self, path: Path, fd: int, size: int, *, ahead: int = 0) -> int:
        """Make room and lengthen an incomplete file to *size* bytes; its length is its reservation.
        Up to *ahead* bytes more are reserved while that evicts nothing and leaves most of the free
        room to others. Returns the new length. For transactions only.

        INVARIANT: cached, incomplete, invalid and held bytes together never exceed ``max_size``.
        """
        with self._lock:
            if not is_at(fd, path):
                raise _taken_away(path.name)
            wanted = size - os.fstat(fd).st_size
            self._reserve_capacity(path.name, size, wanted)
            if ahead:
                size += min(ahead, self._capacity.usage(self._limits, wanted).spare // AHEAD_SHARE)
            os.ftruncate(fd, size)
            return size

    def fitting(self, sizes: Mapping[str, int]) -> set[str]:
        """Which of the images, each of so many bytes, would have room now, were it the only one;
        evicts nothing. One look for all: an image for which nothing else would be enough is told to
        fit where its own left bytes make the difference."""
        with self._lock:
            left = self._capacity.usage(self._limits)
            most = max(sizes.values(), default=0)
            for candidate in self._capacity.candidates():
                if left.spare >= most and not left.over:
                    break
                left = left.without(candidate)
            return {
                image_id
                for image_id, size in sizes.items()
                if max(left.over_limit, left.over_disk) + size <= 0 or size > left.limit
            }

    def publish(self, entry: Entry, path: Path, fd: int) -> Entry:
        """Record a synced, verified file and rename it into place; for transactions only. The
        file's owner shares it from here on.

        Where another writer was faster, its publication stays, and is the answer. Where something
        stands in the image's place that is not the cache's, that stays, too: the image is not
        cached, and the reason is written down."""
        with self._lock:
            other = self._checker.mend(entry.image_id)
            if other is not None:
                if is_at(fd, path):
                    path.unlink()
                self._forget_wanted(entry.image_id)
                return other
            if not is_at(fd, path) or os.fstat(fd).st_size != entry.size:
                raise _taken_away(path.name)
            target = self._layout.image(entry.image_id)
            obstacle = what_stands_at(target)
            if obstacle is not None:
                return self._give_up(entry, path, obstacle)
            wished = entry.image_id in self._pins
            recorded = self._driver.put(replace(entry, pinned=True) if wished else entry, path)
            share(fd)
            try:
                path.rename(target)
            except OSError as error:
                self._driver.remove(entry.image_id)
                if is_other_kind(error):  # an immutable file, say
                    return self._give_up(entry, path, f"cannot be cached: {target}: {error}")
                raise
            entry = recorded
            self._forget_wanted(entry.image_id)
        sync_directory(self._layout.base)
        if wished:
            with self._lock:
                self._apply_pins()
        return entry

    def _give_up(self, entry: Entry, path: Path, why: str) -> Entry:
        """Drop a verified file that cannot get its name."""
        path.unlink()
        self.fail(entry.image_id, CacheFSError(why), source=entry.source)
        log.warning("image %r %s", entry.image_id, why)
        return entry

    def reject(
        self, path: Path, error: CacheFSError, source: str | None, version: str | None = None
    ) -> None:
        """Move bytes that failed verification to ``invalid/``; for transactions only. Where the
        reason cannot be written down it is logged: the bytes are a failure by themselves."""
        with self._lock:
            size = path.stat().st_size
            try:
                path.rename(self._layout.invalid(path.name))
            except OSError as trouble:  # a directory there, an immutable file
                log.error("cannot move %s to %s: %s", path, self._layout.invalid_dir, trouble)
                path.unlink()
                size = 0
            try:
                self.fail(path.name, error, source=source, size=size, version=version)
            except OSError as trouble:
                log.error(
                    "could not write down that image %r has: %s: %s", path.name, error, trouble
                )

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
        reason = str(error) or type(error).__name__
        self._failures.add(
            Failure(image_id, reason, self.now(), size=size, source=source, version=version)
        )
        self._queue.discard(image_id)

    def failure(self, image_id: str) -> Failure | None:
        """Why the image could not be had, or None where it has not failed."""
        return self._failures.get(image_id)

    def failed_ids(self) -> list[str]:
        """The images that could not be had, sorted."""
        return self._failures.ids()

    def forget_failure(self, image_id: str) -> bool:
        """Forget the failure and remove its bytes; False where there was none."""
        known = self._failures.discard(image_id)
        self.room_changed()
        return known

    # Queueing

    def queued_ids(self) -> list[str]:
        """The queued images, higher priority first, then in order of queueing."""
        return self._queue.ids()

    def queued_since(self, image_id: str) -> float | None:
        """When the image was queued, in seconds since the epoch; None where it is not queued."""
        return self._queue.since(image_id)

    def priority(self, image_id: str) -> int:
        """The priority of a queued image; 0 unless it was set."""
        return self._queue.priority(image_id)

    def set_priority(self, image_id: str, priority: int) -> bool:
        """Have a queued image fetched before those of lower priority; durable. False, and nothing
        is done, where it is not queued."""
        if image_id not in self._queue:
            return False
        self._queue.set_priority(image_id, priority)
        return True

    def unqueue(self, image_id: str) -> bool:
        """Take an image out of the queue; False where it was not in it."""
        return self._queue.discard(image_id)

    def requeue_abandoned(self) -> None:
        """Queue the images that :meth:`abandoned` lists."""
        for image_id in self.abandoned():
            self._queue.add(image_id)

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
            self._failures.discard(image_id)
            return self._queue.add(image_id)

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
            self._pins.add(image_id)
            self._failures.discard(image_id)
            self._queue.add(image_id)
            return False

    def unpin(self, image_id: str) -> None:
        """Pin an image no longer, nor when it is cached. Raises ImageNotFoundError where neither
        was so."""
        with self._lock:
            wished = self._pins.discard(image_id)
            entry = self._driver.get(image_id)
            if entry is not None and entry.pinned:
                self._driver.set_pinned(image_id, False)
            elif not wished:
                raise ImageNotFoundError(f"image {image_id!r} is not pinned")
        self.room_changed()

    def to_be_pinned(self) -> list[str]:
        """The images that :meth:`pin_when_cached` waits for, sorted."""
        return self._pins.ids()

    def is_to_be_pinned(self, image_id: str) -> bool:
        """Whether the image is one of :meth:`to_be_pinned`."""
        return image_id in self._pins

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
            self._remove(entry)
        self.room_changed()
        return entry

    def prune(self) -> tuple[int, int]:
        """Drop the least recently used images until the limits hold again: (images, bytes)
        dropped. What cannot be removed is logged, and the next goes instead."""
        with self._lock:
            self._apply_pins()
            dropped = self._drop_until_fits(self._capacity.usage(self._limits))
        if dropped[0]:
            self.room_changed()
        return dropped

    def clean(self, stall_time: float) -> tuple[int, int]:
        """Remove all failures with their bytes, and what :meth:`clean_stalled` does. Returns the
        numbers (invalid, stalled) removed."""
        invalid = 0
        with self._lock:
            for image_id in self._failures.ids():
                try:
                    invalid += self._failures.discard(image_id)
                except OSError as error:
                    log.error("cannot remove the invalid image %r: %s", image_id, error)
        stalled = self.clean_stalled(stall_time)
        self.room_changed()
        return invalid, stalled

    def clean_stalled(self, stall_time: float) -> int:
        """Remove incomplete files that nobody writes and nobody has written for *stall_time*
        seconds."""
        stalled = 0
        with self._lock:
            for path, map_path in list(self._partial()):
                try:
                    old = path.lstat().st_mtime <= self._clock() - stall_time
                    if old and not is_being_written(path):
                        _drop_partial(path, map_path)
                        stalled += 1
                except FileNotFoundError:
                    continue
                except OSError as error:
                    log.error("cannot remove %s: %s", path, error)
            self._drop_orphaned_maps()
        return stalled

    # Inside the lock

    def _reserve_capacity(self, image_id: str, size: int, wanted: int) -> None:
        """Have room for *wanted* more bytes of an image of *size* bytes. Nothing is dropped unless
        that will be enough. Raises NoRoomError."""
        usage = self._capacity.usage(self._limits, wanted)
        if not usage.over:
            return
        if size > usage.limit:
            raise ImageTooLargeError(
                f"image {image_id!r} needs {human_size(size)}, and max_size is"
                f" {human_size(usage.limit)}"
            )
        short = usage
        for candidate in self._capacity.candidates(spare=image_id):
            short = short.without(candidate)
            if not short.over:
                break
        if not short.over:
            self._drop_until_fits(usage, spare=image_id)
            short = self._capacity.usage(self._limits, wanted)
            if short.over_limit <= 0:  # what the disk gets back it may take a while to tell
                return
        raise NoRoomError(describe_shortage(self._layout, self._driver, image_id, size, short))

    def _apply_pins(self) -> None:
        """Pin what was to be pinned and is cached by now, by a writer that is gone or that knows
        nothing of pins."""
        for image_id in self._pins.ids():
            if self._driver.set_pinned(image_id, True):
                self._pins.discard(image_id)

    def _drop_until_fits(self, usage: Usage, *, spare: str | None = None) -> tuple[int, int]:
        """Drop one thing after the other until nothing is over; the images and bytes dropped.

        Measured once, for a filesystem may take its time to give back what was removed."""
        images = size = 0
        stuck: set[Path] = set()  # what could not be removed is recorded anew, and comes again
        for candidate in self._capacity.candidates(spare=spare) if usage.over else ():
            if candidate.path in stuck:
                continue
            if not self._drop(candidate):
                stuck.add(candidate.path)
                continue
            usage = usage.without(candidate)
            if candidate.entry is not None:
                images, size = images + 1, size + candidate.size
            if not usage.over:
                break
        return images, size

    def _drop(self, candidate: Candidate) -> bool:
        """Remove a candidate, unless a reader has opened it since it was chosen."""
        name = candidate.path.name
        try:
            if candidate.entry is not None:
                with owned(candidate.path):
                    self._remove(candidate.entry)
            elif candidate.path.parent == self._layout.incomplete_dir:
                _drop_partial(candidate.path, self._layout.map(name))
            elif candidate.path.parent == self._layout.beside_dir:
                _drop_partial(candidate.path, self._layout.beside_map(name))
            else:
                candidate.path.unlink(missing_ok=True)
        except BlockingIOError:
            return False
        except (CacheFSError, OSError) as error:
            log.error("cannot remove %s: %s", candidate.path, error)
            return False
        return True

    def _partial(self) -> Iterator[tuple[Path, Path]]:
        """Every file that is or was being written, with the place of its map."""
        for name, _ in files_in(self._layout.incomplete_dir):
            yield self._layout.incomplete(name), self._layout.map(name)
        for name, _ in files_in(self._layout.beside_dir):
            yield self._layout.beside(name), self._layout.beside_map(name)

    def _drop_orphaned_maps(self) -> None:
        """Remove maps whose bytes have gone: the map could not, then."""
        for maps, files in (
            (self._layout.maps_dir, self._layout.incomplete_dir),
            (self._layout.beside_maps_dir, self._layout.beside_dir),
        ):
            for name, _ in list(files_in(maps)):
                if not (files / name).exists():
                    remove(maps / name)

    def _forget_wanted(self, image_id: str) -> None:
        """The image is cached, so it is neither queued nor invalid. What cannot be removed is
        logged: it harms nothing that is cached."""
        for discard in (self._queue.discard, self._failures.discard):
            try:
                discard(image_id)
            except OSError as error:
                log.error("what was queued or failed as %r stays: %s", image_id, error)

    def _remove(self, entry: Entry) -> None:
        """Record gone first, then the file: a crash between leaves a file that is adopted again."""
        path = self._layout.image(entry.image_id)
        check_removable(path)  # or it could not be put back: the xattr driver writes to the file
        for listener in self._evicting:
            listener(entry)
        try:
            self._driver.remove(entry.image_id)
        except NoRoomError:  # the disk is full, and this image's room is what is wanted
            path.unlink(missing_ok=True)
            self._driver.remove(entry.image_id)
        try:
            path.unlink(missing_ok=True)
        except OSError:
            self._driver.put(entry, path)  # it takes room still, so it must go on counting
            raise
        self.quick.evictions += 1
        self._tell(entry)

    def _tell(self, entry: Entry) -> None:
        for listener in self._evicted:
            listener(entry)


def _drop_partial(path: Path, map_path: Path) -> None:
    remove(map_path)
    path.unlink(missing_ok=True)


def _taken_away(image_id: str) -> ImageBusyError:
    return ImageBusyError(f"image {image_id!r} was taken away while it was written")
