"""What leaves the cache, and how room is made for a reservation.

Owns the limits, the steps in which an image leaves, and those who hear of it. What may go, and in
which order, is told by :mod:`cachefs.cache.capacity`; whose room it becomes is not known here. The
caller holds the directory's lock, but for setting limits and adding listeners."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from cachefs.cache.capacity import Candidate, Capacity, Limits, Usage
from cachefs.cache.incomplete import drop_partial
from cachefs.cache.layout import Layout, check_removable
from cachefs.cache.lock import owned
from cachefs.cache.quick import QuickStore
from cachefs.cache.shortage import describe_shortage
from cachefs.drivers import Driver, Entry
from cachefs.errors import CacheFSError, ImageTooLargeError, NoRoomError
from cachefs.units import human_size

log = logging.getLogger(__name__)


class Eviction:
    """Makes room in one cache directory, within *limits*, which may be set at any time. *quick*
    counts what is evicted."""

    def __init__(
        self, layout: Layout, driver: Driver, capacity: Capacity, quick: QuickStore, limits: Limits
    ) -> None:
        self._layout = layout
        self._driver = driver
        self._capacity = capacity
        self._quick = quick
        self.limits = limits
        self.before_choosing: list[Callable[[], None]] = []
        """Each is called before images are chosen to leave, to write what the index is to know of
        their use."""
        self.on_evicting: list[Callable[[Entry], None]] = []
        """Each is called for every image about to leave, while its file has its name."""
        self.on_stayed: list[Callable[[Entry], None]] = []
        """Each is called for every image that was about to leave and has not left."""
        self.on_evicted: list[Callable[[Entry], None]] = []
        """Each is called for every image that has left."""

    def usage(self, wanted: int = 0) -> Usage:
        """The room taken, and what must go so that *wanted* bytes fit; asked without the lock, what
        its holder has half done counts as it is."""
        return self._capacity.usage(self.limits, wanted)

    def fitting(self, sizes: Mapping[str, int]) -> set[str]:
        """Which of the images, each of so many bytes, would have room; evicts nothing. See
        :meth:`cachefs.cache.store.Store.fitting`."""
        left = self.usage()
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

    def make_room(self, image_id: str, size: int, wanted: int) -> None:
        """Have room for *wanted* more bytes of an image of *size* bytes. Nothing is dropped unless
        that will be enough. Raises NoRoomError."""
        usage = self.usage(wanted)
        if not usage.over:
            return
        if size > usage.limit:
            raise ImageTooLargeError(
                f"image {image_id!r} needs {human_size(size)}, and max_size is"
                f" {human_size(usage.limit)}"
            )
        if wanted <= 0:  # it has its room; that the cache is over a limit is not its doing
            return
        self._choose()
        short = usage
        for candidate in self._capacity.candidates(spare=image_id):
            short = short.without(candidate)
            if not short.over:
                break
        if not short.over:
            self._drop_until_fits(usage, spare=image_id)
            short = self.usage(wanted)
            if short.over_limit <= 0:  # what the disk gets back it may take a while to tell
                return
        raise NoRoomError(describe_shortage(self._layout, self._driver, image_id, size, short))

    def keep_limits(self) -> tuple[int, int]:
        """Drop the least recently used images until the limits hold: (images, bytes) dropped."""
        usage = self.usage()
        if usage.over:
            self._choose()
        return self._drop_until_fits(usage)

    def remove(self, entry: Entry) -> None:
        """Remove a cached image. Record gone first, then the file: a crash between leaves a file
        that is adopted again. Raises OSError where it cannot be removed: then it is cached."""
        path = self._layout.image(entry.image_id)
        check_removable(path)  # or it could not be put back: the xattr driver writes to the file
        try:
            for listener in self.on_evicting:
                listener(entry)
            self._remove(entry, path)
        except BaseException:
            for listener in self.on_stayed:
                listener(entry)
            raise
        self._quick.evictions += 1
        self.tell_gone(entry)

    def tell_gone(self, entry: Entry) -> None:
        """Tell the listeners that the record means no cached image any more."""
        for listener in self.on_evicted:
            listener(entry)

    # Inside

    def _choose(self) -> None:
        """Have the index know the last uses of all images: it tells which go first."""
        for listener in self.before_choosing:
            listener()

    def _remove(self, entry: Entry, path: Path) -> None:
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
                    self.remove(candidate.entry)
            elif candidate.path.parent == self._layout.incomplete_dir:
                drop_partial(candidate.path, self._layout.map(name))
            elif candidate.path.parent == self._layout.beside_dir:
                drop_partial(candidate.path, self._layout.beside_map(name))
            else:
                candidate.path.unlink(missing_ok=True)
        except BlockingIOError:
            return False
        except (CacheFSError, OSError) as error:
            log.error("cannot remove %s: %s", candidate.path, error)
            return False
        return True
