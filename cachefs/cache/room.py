"""How much room there is, and which images to drop for more. Decides; removes nothing.

The room that is taken is the published images, the whole length of every file under ``incomplete/``
(a file is as long as what is reserved for it, from the first byte on), the rejected bytes in
``invalid/``, and what the disk must keep free besides.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cachefs.cache.layout import Layout, files_in
from cachefs.cache.lock import is_held
from cachefs.config import Amount
from cachefs.drivers import Driver, Entry

NOTHING = Amount(size=0)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the cache may take. *max_size* is a hard limit on images, reservations and rejects
    together, in bytes or in percent of the filesystem; *min_free* is left free on the
    filesystem."""

    max_size: Amount
    min_free: Amount = NOTHING


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes: *limit* is ``max_size`` now, *cached* the images', *reserved* incomplete ones',
    *rejected* invalid ones', *over* how much must go before another byte may come (0 or more)."""

    limit: int
    cached: int
    reserved: int
    rejected: int
    over: int

    @property
    def free(self) -> int:
        """What an image may still take without anything being evicted."""
        return max(0, self.limit - self.cached - self.reserved - self.rejected)


@dataclass(frozen=True, slots=True)
class Leftover:
    """Bytes in ``invalid/`` (*rejected*), or in ``incomplete/`` without a writer; *size* in
    bytes."""

    image_id: str
    size: int
    rejected: bool


class Room:
    """Measures the room of a cache directory. The caller holds the directory's lock."""

    def __init__(self, layout: Layout, driver: Driver, limits: Callable[[], Limits]) -> None:
        self._layout = layout
        self._driver = driver
        self._limits = limits

    def usage(self, wanted: int = 0) -> Usage:
        """The room taken, and what must go so that *wanted* bytes fit.

        ``min_free`` asks only for what dropping images can give: it counts bytes reserved but not
        yet written as written.
        """
        limits, disk = self._limits(), os.statvfs(self._layout.base)
        total = disk.f_blocks * disk.f_frsize
        reserved, written = 0, 0
        for _, status in files_in(self._layout.incomplete_dir):
            reserved += status.st_size
            written += min(status.st_size, status.st_blocks * 512)
        rejected = sum(status.st_size for _, status in files_in(self._layout.invalid_dir))
        cached = self._driver.totals().size
        limit = limits.max_size.of(total)
        over_limit = cached + reserved + rejected + wanted - limit
        free = disk.f_bavail * disk.f_frsize - (reserved - written) - wanted
        over_disk = limits.min_free.of(total) - free
        return Usage(limit, cached, reserved, rejected, max(0, over_limit, over_disk))

    def victims(self, *, spare: str) -> Iterator[Entry]:
        """The images that may go, least recently used first: neither pinned nor held open by any
        process, nor *spare*."""
        for entry in self._driver.lru():
            if entry.image_id != spare and not is_held(self._layout.image(entry.image_id)):
                yield entry

    def leftovers(self, *, spare: str) -> list[Leftover]:
        """Rejected bytes, and partial files that nobody writes, oldest first: of less use than any
        image, so the first to go. *spare* is left out."""
        found = []
        for directory in (self._layout.invalid_dir, self._layout.incomplete_dir):
            rejected = directory == self._layout.invalid_dir
            for name, status in files_in(directory):
                if status.st_size and name != spare and not is_held(directory / name):
                    found.append((status.st_mtime_ns, Leftover(name, status.st_size, rejected)))
        return [leftover for _, leftover in sorted(found, key=lambda pair: pair[0])]
