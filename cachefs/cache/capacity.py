"""How much room there is, and what may go for more. Decides; removes nothing.

The room that is taken is the published images, the whole length of every file under ``incomplete/``
(a file is as long as what is reserved for it, from the first byte on), the rejected bytes in
``invalid/``, the evicted images that are open still, and what the disk must keep free besides.

INVARIANT: cached, incomplete, invalid and held bytes together never exceed ``max_size``. So what is
evicted while it is open gives nothing back until its last close.
"""

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from cachefs.cache.held import held_files, only_held
from cachefs.cache.incomplete import is_anybodys
from cachefs.cache.layout import Layout, files_in
from cachefs.cache.lock import is_held
from cachefs.drivers import Driver, Entry
from cachefs.units import Amount

NOTHING = Amount(size=0)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the cache may take. *max_size* is a hard limit on images, reservations, rejects and what
    is open without being any of these, in bytes or in percent of the filesystem; *min_free* is left
    free on the filesystem."""

    max_size: Amount
    min_free: Amount = NOTHING


@dataclass(frozen=True, slots=True)
class Candidate:
    """What may go: an image (*entry*), or bytes that are none. The cache gets *size* bytes back,
    the disk *disk* bytes (fewer where a file has holes)."""

    path: Path
    size: int
    disk: int
    entry: Entry | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes: *limit* is ``max_size`` now, *cached* the images', *reserved* incomplete ones',
    *rejected* invalid ones', *held* those of images that are neither but open still. *over_limit*
    and *over_disk* say how much must go from the cache and from the disk before the bytes that were
    asked for fit; negative is room left."""

    limit: int
    cached: int
    reserved: int
    rejected: int
    held: int
    over_limit: int
    over_disk: int

    @property
    def taken(self) -> int:
        """All that counts against the limit."""
        return self.cached + self.reserved + self.rejected + self.held

    @property
    def free(self) -> int:
        """What an image may still take without anything being evicted."""
        return max(0, self.limit - self.taken)

    @property
    def over(self) -> int:
        """How much must go; 0 where all fits."""
        return max(0, self.over_limit, self.over_disk)

    @property
    def spare(self) -> int:
        """What fits besides what was asked for."""
        return max(0, -max(self.over_limit, self.over_disk))

    def without(self, candidate: Candidate) -> Self:
        """What is over once *candidate* has gone."""
        return replace(
            self,
            over_limit=self.over_limit - candidate.size,
            over_disk=self.over_disk - candidate.disk,
        )


class Capacity:
    """Measures the room of a cache directory. The caller holds the directory's lock; who only
    shows :meth:`usage` need not: what the lock holder has half done is counted as it is."""

    def __init__(self, layout: Layout, driver: Driver) -> None:
        self._layout = layout
        self._driver = driver

    def usage(self, limits: Limits, wanted: int = 0) -> Usage:
        """The room taken, and what must go so that *wanted* bytes fit.

        Bytes that are reserved and not yet written count as written: the disk's free space knows
        nothing of them.
        """
        disk = os.statvfs(self._layout.base)
        total = disk.f_blocks * disk.f_frsize
        reserved, unwritten, rejected = 0, 0, 0
        counted = set()  # a writer that aborts takes no lock
        for _, status in self._partial():
            counted.add(status.st_ino)
            reserved += status.st_size
            unwritten += status.st_size - _on_disk(status)
        for _, status in files_in(self._layout.invalid_dir):
            counted.add(status.st_ino)
            rejected += status.st_size
        held = only_held(self._layout, counted)
        cached = self._driver.totals().size
        limit = limits.max_size.of(total)
        over_limit = cached + reserved + rejected + held + wanted - limit
        free = disk.f_bavail * disk.f_frsize - unwritten - wanted
        # A filesystem that tells nothing of its size (ramfs) sets no limit of its own.
        over_disk = limits.min_free.of(total) - free if total else over_limit
        return Usage(limit, cached, reserved, rejected, held, over_limit, over_disk)

    def candidates(self, *, spare: str | None = None) -> Iterator[Candidate]:
        """What may go, of least use first: what a dead writer has left behind, rejected bytes,
        images from the least recently used on. Neither pinned images, nor what any process holds
        open, nor *spare*, the image that the room is for. Read lazily; what has been yielded may be
        removed meanwhile."""
        held = held_files(self._layout)  # whose removal would give nothing back
        for directory in (self._layout.incomplete_dir, self._layout.beside_dir):
            for name, status in _oldest_first(directory):
                path = directory / name
                if name != spare and status.st_ino not in held and not is_anybodys(path):
                    yield Candidate(path, status.st_size, status.st_size)
        for name, status in _oldest_first(self._layout.invalid_dir):
            if status.st_ino not in held:
                yield Candidate(self._layout.invalid(name), status.st_size, _on_disk(status))
        for entry in self._driver.lru():
            path = self._layout.image(entry.image_id)
            if entry.image_id != spare and not is_open(path, held):
                yield Candidate(path, entry.size, _disk_of(path), entry)

    def _partial(self) -> Iterator[tuple[str, os.stat_result]]:
        yield from files_in(self._layout.incomplete_dir)
        yield from files_in(self._layout.beside_dir)


def is_open(path: Path, held: Container[int]) -> bool:
    """Whether any process has the file open, or it is one of the inodes that are *held*; also where
    that cannot be told."""
    try:
        return path.lstat().st_ino in held or is_held(path)
    except FileNotFoundError:
        return False
    except OSError:  # not ours to look into, or another kind of file by now: nothing to be evicted
        return True


def _on_disk(status: os.stat_result) -> int:
    """Bytes of the disk that the file has, as far as its length is reserved."""
    return min(status.st_size, status.st_blocks * 512)


def _disk_of(path: Path) -> int:
    try:
        return _on_disk(path.lstat())
    except FileNotFoundError:
        return 0


def _oldest_first(directory: Path) -> list[tuple[str, os.stat_result]]:
    """The files that take room there."""
    found = [(name, status) for name, status in files_in(directory) if status.st_size]
    return sorted(found, key=lambda item: item[1].st_mtime_ns)
