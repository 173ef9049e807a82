"""The cache of one directory: what is cached, queued, failed; begin, open, evict, clean.

Owns every decision about the directory and the lock under which they are made; knows neither trio
nor FUSE nor where images come from. All methods block and may be called from any thread; those
marked *quick* take no lock that is ever held across disk writes, so that an event loop may call
them.

Several processes may use one directory. What is reserved, held open, queued or failed is on the
disk (file lengths, file locks, files), not in memory."""

import contextlib
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cachefs.cache.held import Held
from cachefs.cache.layout import Layout, files_in, sync_directory
from cachefs.cache.lock import DirectoryLock, is_held, own, share
from cachefs.cache.partial import PartialMap, Version
from cachefs.cache.queue import Failure, Failures, Queue
from cachefs.cache.room import Leftover, Limits, Room, Usage
from cachefs.cache.transaction import Transaction, open_incomplete
from cachefs.drivers import Driver, Entry, Totals, open_driver
from cachefs.errors import (
    CacheFSError,
    ImageBusyError,
    ImageExistsError,
    ImageNotFoundError,
    InvalidImageIDError,
    NoRoomError,
    errno_of,
)
from cachefs.image import check_image_id

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenImage:
    """A cached image held open. *fd* stays readable, and the image is no victim, until it is
    closed."""

    entry: Entry
    fd: int

    def close(self) -> None:
        """Let the image go."""
        os.close(self.fd)


class Store:
    """The cache in *cache_dir*, made if it is missing, reconciled before anything else.

    Raises DriverError when no driver works there, OSError when the directory cannot be made.
    """

    def __init__(
        self,
        cache_dir: Path,
        limits: Limits,
        *,
        driver: str = "sqlite",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.layout = Layout(cache_dir)
        self.layout.create()
        self.limits = limits
        self.queue = Queue(self.layout)
        self.failures = Failures(self.layout)
        self._clock = clock
        self._last_now = 0.0
        self._stamps = threading.Lock()
        self.held = Held(self.layout.held_dir)
        self._evicting: list[Callable[[Entry], None]] = []
        self._evicted: list[Callable[[Entry], None]] = []
        self.evictions = 0
        self._lock = DirectoryLock(self.layout.lock_file)
        try:
            with self._lock:
                self.driver: Driver = open_driver(driver, cache_dir)
                self._reconcile()
        except BaseException:
            self._lock.close()
            raise
        self._room = Room(self.layout, self.driver, lambda: self.limits)

    def close(self) -> None:
        """Let go of the driver and the lock. Open images and transactions are their owners'."""
        self.driver.close()
        self._lock.close()

    def now(self) -> float:
        """Seconds since the epoch, later than any answer before: LRU order knows no ties."""
        with self._stamps:
            self._last_now = max(self._clock(), self._last_now + 1e-6)
            return self._last_now

    def on_evicting(self, listener: Callable[[Entry], None]) -> None:
        """Call *listener*, in the evicting thread and under the lock, for every image about to
        leave, while its file has its name."""
        self._evicting.append(listener)

    def on_evicted(self, listener: Callable[[Entry], None]) -> None:
        """Call *listener*, in the evicting thread and under the lock, for every image that
        leaves."""
        self._evicted.append(listener)

    # What there is

    def get(self, image_id: str) -> Entry | None:
        """The record of a cached image (quick)."""
        return self.driver.get(image_id)

    def totals(self) -> Totals:
        """Number and bytes of the cached images (quick)."""
        return self.driver.totals()

    def usage(self) -> Usage:
        """The room taken, in bytes."""
        with self._lock:
            return self._room.usage()

    def is_being_written(self, image_id: str) -> bool:
        """Whether a living writer, in any process, is caching the image (quick)."""
        return is_held(self.layout.incomplete(image_id))

    def incomplete(self) -> Iterator[tuple[str, os.stat_result]]:
        """The images being written by anybody, with their files' stat."""
        for name, status in files_in(self.layout.incomplete_dir):
            if self.is_being_written(name):
                yield name, status

    # Reading

    def open_image(self, image_id: str) -> OpenImage:
        """Hold a cached image open for reading; counts no hit (quick). Raises ImageNotFoundError.

        The descriptor shares a lock that every evictor of every process respects, and
        O_NOATIME where we may, since the xattr driver keeps its order in the atime.
        """
        entry = self.driver.get(image_id)
        if entry is None:
            raise ImageNotFoundError(f"image {image_id!r} is not cached")
        try:
            fd = _open_shared(self.layout.image(image_id))
        except (FileNotFoundError, BlockingIOError):  # evicted since, or at this moment
            raise ImageNotFoundError(f"image {image_id!r} has just been evicted") from None
        size = os.fstat(fd).st_size
        if size != entry.size:
            os.close(fd)
            error = CacheFSError(f"the file has {size} bytes, its record says {entry.size}")
            log.error("cached image %r is damaged, dropping it: %s", image_id, error)
            self._drop_damaged(entry, error)
            raise ImageNotFoundError(f"image {image_id!r} was damaged and has been dropped")
        return OpenImage(entry, fd)

    def hit(self, image_id: str) -> None:
        """Count one use now (quick); durable against the death of this process."""
        self.driver.hit(image_id, self.now())

    # Writing

    def begin(
        self, image_id: str, size: int | None = None, version: Version | None = None
    ) -> Transaction:
        """Start caching an image of *size* bytes, or of a size nobody knows yet.

        With *version* the transaction has a map, and goes on where an earlier one of surely the
        same version left off. Room is made and reserved first, evicting as needed. Raises
        ImageExistsError when it is cached, ImageBusyError while another writer lives, NoRoomError
        when it cannot fit: then nothing was evicted for it."""
        check_image_id(image_id)
        with self._lock:
            if self.driver.get(image_id) is not None or self._adopt(image_id):
                raise ImageExistsError(f"image {image_id!r} is cached already")
            path, map_path = self.layout.incomplete(image_id), self.layout.map(image_id)
            earlier = PartialMap.open(map_path) if version and path.exists() else None
            keep = (
                earlier is not None and version is not None and earlier.version.is_surely(version)
            )
            if earlier is not None and not keep:
                earlier.close()
            if not keep and not self.is_being_written(image_id):
                # Before its file is replaced: a crash must not leave the map beside another file.
                map_path.unlink(missing_ok=True)
            fd = open_incomplete(path, keep=keep)
            transaction = Transaction(self, path, fd, size, earlier if keep else None)
            try:
                self.reserve(path, fd, size or 0)
                if version is not None and not keep:
                    transaction.partial = PartialMap.create(map_path, version)
            except BaseException:
                transaction.abort()
                raise
        return transaction

    def abandoned(self) -> list[str]:
        """The incomplete images that can be gone on with and that nobody writes."""
        names = [name for name, _ in files_in(self.layout.maps_dir)]
        return sorted(
            name
            for name in names
            if self.layout.incomplete(name).exists() and not self.is_being_written(name)
        )

    def reserve(self, path: Path, fd: int, size: int) -> None:
        """Make room and lengthen an incomplete file to *size* bytes; its length is its reservation.

        INVARIANT: cached, incomplete and invalid bytes together never exceed ``max_size``.
        """
        with self._lock:
            wanted = size - os.fstat(fd).st_size
            self._make_room(wanted, what=path.name, reserving=True)
            os.ftruncate(fd, size)

    def publish(self, entry: Entry, path: Path, fd: int) -> Entry:
        """Record a synced, verified file and rename it into place; for transactions only. The
        file's owner shares it from here on."""
        with self._lock:
            if not path.exists():
                raise ImageBusyError(
                    f"image {entry.image_id!r} was cleaned away while it was written"
                )
            entry = self.driver.put(entry, path)
            share(fd)
            path.rename(self.layout.image(entry.image_id))
            self.queue.discard(entry.image_id)
            self.failures.discard(entry.image_id)
        sync_directory(self.layout.base)
        return entry

    def reject(self, image_id: str, path: Path, error: CacheFSError, source: str | None) -> None:
        """Move bytes that failed verification to ``invalid/``; for transactions only."""
        with self._lock:
            size = path.stat().st_size
            path.rename(self.layout.invalid(image_id))
            self.fail(image_id, error, source=source, size=size)

    def fail(
        self, image_id: str, error: BaseException, *, source: str | None = None, size: int = 0
    ) -> None:
        """Remember that the image could not be had, and why; it leaves the queue."""
        reason = str(error) or type(error).__name__
        self.failures.add(
            Failure(image_id, reason, errno_of(error), self.now(), size=size, source=source)
        )
        self.queue.discard(image_id)

    # Queueing

    def enqueue(self, image_id: str) -> bool:
        """Queue an image; False where it is queued already. An earlier failure is forgotten.

        Raises ImageExistsError when it is cached or being written.
        """
        check_image_id(image_id)
        if self.driver.get(image_id) is not None or self._adopt(image_id):
            raise ImageExistsError(f"image {image_id!r} is cached already")
        if self.is_being_written(image_id):
            raise ImageExistsError(f"image {image_id!r} is being cached already")
        self.failures.discard(image_id)
        return self.queue.add(image_id)

    # Evicting

    def pin(self, image_id: str, pinned: bool) -> None:
        """Keep a cached image from eviction, or no longer. Raises ImageNotFoundError."""
        with self._lock:
            if not self.driver.set_pinned(image_id, pinned):
                raise ImageNotFoundError(f"image {image_id!r} is not cached")

    def evict(self, image_id: str, *, force: bool = False) -> Entry:
        """Remove a cached image. Whoever has it open reads on; its room is back when they close it.

        Raises ImageNotFoundError, and ImageBusyError for a pinned image unless *force*.
        """
        with self._lock:
            entry = self.driver.get(image_id)
            if entry is None:
                raise ImageNotFoundError(f"image {image_id!r} is not cached")
            if entry.pinned and not force:
                raise ImageBusyError(f"image {image_id!r} is pinned")
            self._remove(entry)
            return entry

    def prune(self) -> tuple[int, int]:
        """Drop the least recently used images until the limits hold again: (images, bytes)
        dropped."""
        with self._lock:
            return self._make_room(0, what="prune", reserving=False)

    def clean(self, stall_time: float) -> tuple[int, int]:
        """Remove all failures with their bytes, and what :meth:`clean_stalled` does. Returns the
        numbers (invalid, stalled) removed."""
        with self._lock:
            invalid = [
                image_id for image_id in self.failures.ids() if self.failures.discard(image_id)
            ]
        return len(invalid), self.clean_stalled(stall_time)

    def clean_stalled(self, stall_time: float) -> int:
        """Remove incomplete files that nobody writes and nobody has written for *stall_time*
        seconds."""
        stalled = 0
        with self._lock:
            for name, status in list(files_in(self.layout.incomplete_dir)):
                if status.st_mtime <= self._clock() - stall_time and not self.is_being_written(
                    name
                ):
                    self._drop_partial(name)
                    stalled += 1
        return stalled

    # Inside the lock

    def _make_room(self, wanted: int, *, what: str, reserving: bool) -> tuple[int, int]:
        """Evict until *wanted* more bytes fit; when *reserving*, all that is needed or nothing."""
        images = size = 0
        while (usage := self._room.usage(wanted)).over:
            if reserving and wanted > usage.limit:
                raise NoRoomError(
                    f"image {what!r} needs {wanted} bytes, and max_size is {usage.limit}"
                )
            leftovers, victims, short = self._choose(usage.over, spare=what)
            if reserving and short > 0:
                raise NoRoomError(
                    f"no room for image {what!r}: {short} of {wanted} bytes short, without all "
                    "that is neither open nor pinned"
                )
            for leftover in leftovers:
                self._drop_leftover(leftover)
            dropped = self._drop(victims)
            images, size = images + len(dropped), size + sum(entry.size for entry in dropped)
            if not dropped and not leftovers:  # nothing more may go
                break
        return images, size

    def _choose(self, goal: int, *, spare: str) -> tuple[list[Leftover], list[Entry], int]:
        """Leftovers and images whose going frees *goal* bytes, and how many bytes that falls
        short."""
        leftovers, victims = [], []
        for leftover in self._room.leftovers(spare=spare):
            if goal > 0:
                leftovers.append(leftover)
                goal -= leftover.size
        if goal > 0:
            for entry in self._room.victims(spare=spare):
                victims.append(entry)
                goal -= entry.size
                if goal <= 0:
                    break
        return leftovers, victims, goal

    def _drop_leftover(self, leftover: Leftover) -> None:
        if leftover.rejected:
            self.layout.invalid(leftover.image_id).unlink(missing_ok=True)
        else:
            self._drop_partial(leftover.image_id)

    def _drop_partial(self, image_id: str) -> None:
        self.layout.map(image_id).unlink(missing_ok=True)
        self.layout.incomplete(image_id).unlink(missing_ok=True)

    def _drop(self, victims: list[Entry]) -> list[Entry]:
        """Remove those of *victims* that nobody has opened since they were chosen."""
        dropped = []
        for entry in victims:
            try:
                with _owned(self.layout.image(entry.image_id)):
                    self._remove(entry)
            except BlockingIOError:
                continue
            except OSError as error:
                log.error("cannot evict image %r: %s", entry.image_id, error)
                continue
            dropped.append(entry)
        return dropped

    def _remove(self, entry: Entry) -> None:
        """Record gone first, then the file: a crash between leaves a file that is adopted again."""
        path = self.layout.image(entry.image_id)
        for listener in self._evicting:
            listener(entry)
        self.driver.remove(entry.image_id)
        try:
            path.unlink(missing_ok=True)
        except OSError:
            self.driver.put(entry, path)  # it takes room still, so it must go on counting
            raise
        self.evictions += 1
        self._tell(entry)

    def _tell(self, entry: Entry) -> None:
        for listener in self._evicted:
            listener(entry)

    def _drop_damaged(self, entry: Entry, error: CacheFSError) -> None:
        with self._lock:
            path = self.layout.image(entry.image_id)
            current = self.driver.get(entry.image_id)
            if current is None or current.inode != entry.inode or not path.exists():
                return
            self.driver.remove(entry.image_id)
            self.reject(entry.image_id, path, error, entry.source)
            self._tell(entry)

    def _adopt(self, image_id: str) -> bool:
        """Record a file that another program has put among the images since the start."""
        path = self.layout.image(image_id)
        with contextlib.suppress(FileNotFoundError), self._lock:
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                if self.driver.get(image_id) is None:
                    entry = Entry(
                        image_id,
                        status.st_size,
                        last_accessed=status.st_mtime,
                        last_modified=status.st_mtime,
                        fetched=status.st_mtime,
                    )
                    self.driver.put(entry, path)
                return True
        return False

    def _reconcile(self) -> None:
        """Mend what a crash, or another program, has left behind."""
        adopted, dropped = self.driver.reconcile()
        if adopted or dropped:
            log.info("adopted %d images without a record, dropped %d records", adopted, dropped)
        maps = {name for name, _ in files_in(self.layout.maps_dir)}
        partial = {name for name, _ in files_in(self.layout.incomplete_dir)}
        for name in partial - maps:
            if not self.is_being_written(name):
                self.layout.incomplete(name).unlink(missing_ok=True)
                log.info("removed %r, left half written by a writer that is gone", name)
        for name in maps - partial:
            self.layout.map(name).unlink(missing_ok=True)
        for name, status in list(files_in(self.layout.scratch_dir)):
            if status.st_mtime < time.time() - 60:
                (self.layout.scratch_dir / name).unlink(missing_ok=True)
        for image_id in self.queue.ids():
            with contextlib.suppress(InvalidImageIDError):
                if self.driver.get(image_id) is not None:
                    self.queue.discard(image_id)


def _open_shared(path: Path) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags | os.O_NOATIME)
    except PermissionError:  # O_NOATIME is the owner's, see open(2)
        fd = os.open(path, flags)
    try:
        share(fd)
        if os.fstat(fd).st_nlink == 0:
            raise FileNotFoundError(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def _owned(path: Path) -> Iterator[None]:
    """Own the file while it is removed; a missing one needs no owner. Raises BlockingIOError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield
        return
    try:
        own(fd)
        yield
    finally:
        os.close(fd)
