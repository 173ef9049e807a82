"""The contract of a driver: the index of the cached images of one cache directory.

A driver records; it decides nothing. It owns no bytes either: publishing and unlinking files is
:mod:`cachefs.cache`'s, which calls :meth:`Driver.put` before the rename and :meth:`Driver.remove`
before the unlink, both under the cache's lock.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """One cached image in the index. Sizes are bytes, times seconds since the epoch.

    *inode* is the number by which the mount knows this publication of the image: assigned by the
    driver at :meth:`Driver.put`, never used twice in the life of the cache directory, so an image
    evicted and fetched again has another one. 0 in an entry that is yet to be put.

    *private* says that others may not read the image at its source, nor through a mount.

    *file* says which file the record speaks of (:func:`file_id`), None where the record is Glance's
    or from a version of ours that did not say. It is no part of what the record says.
    """

    image_id: str
    size: int
    hits: int = 0
    last_accessed: float = 0.0
    last_modified: float = 0.0
    checksum: str | None = None
    pinned: bool = False
    fetched: float | None = None
    source: str | None = None
    verified: bool = False
    inode: int = 0
    file: str | None = field(default=None, compare=False)
    private: bool = False


def file_id(found: os.stat_result) -> str:
    """Which file this is: its size in bytes, its inode number and its mtime in nanoseconds. Not its
    ctime, which links and extended attributes change."""
    return f"{found.st_size}:{found.st_ino}:{found.st_mtime_ns}"


def size_in(file: str) -> int:
    """The size in bytes that a file had by its :func:`file_id`; -1 in one that makes no sense."""
    size = file.partition(":")[0]
    return int(size) if len(size) < 20 and size.isascii() and size.isdigit() else -1


def size_and_mtime_in(file: str | None) -> tuple[int, int]:
    """The size in bytes and the mtime in nanoseconds that a file had by its :func:`file_id`; (-1,
    -1) in one that makes no sense."""
    size, _, rest = (file or "").partition(":")
    try:
        return int(size), int(rest.partition(":")[2])
    except ValueError:
        return -1, -1


@dataclass(frozen=True, slots=True)
class Totals:
    """How many images the index holds, and the sum of their sizes in bytes."""

    images: int
    size: int


class QuickDriver(Protocol):
    """What an event loop may ask of an index: the methods of :class:`Driver` of the same name, that
    never wait for a lock of another thread or process. Each raises
    :class:`cachefs.errors.IndexBusyError` instead, and then has done nothing: the caller asks the
    driver itself, in a thread, which waits."""

    def get(self, image_id: str) -> Entry | None: ...

    def by_inode(self, inode: int) -> Entry | None: ...

    def entries_after(self, inode: int, limit: int) -> list[Entry]: ...

    def totals(self) -> Totals: ...

    def hit(self, image_id: str, when: float, count: int = 1) -> None:
        """As :meth:`Driver.hit`; refused, too, while the index's log is too long to write more."""

    @property
    def is_untidy(self) -> bool:
        """Whether :meth:`Driver.tidy` is due."""


GlanceRecord = tuple[str, int, int, float, float, str | None]
"""``image_id size hits last_accessed last_modified checksum``, as
``glance.image_cache.ImageCache.get_cached_images`` has them."""


def glance_record(entry: Entry) -> GlanceRecord:
    """The part of *entry* that Glance knows."""
    is_md5 = entry.checksum is not None and ":" not in entry.checksum
    return (
        entry.image_id,
        entry.size,
        entry.hits,
        entry.last_accessed,
        entry.last_modified,
        entry.checksum if is_md5 else None,
    )


class Driver(Protocol):
    """An index of cached images.

    Every method may be called from any thread, and other processes may use the same directory:
    what they put, hit or remove is seen by the next call. Every method but :meth:`configure`,
    :meth:`reconcile` and :meth:`entries` costs at most a logarithm of the number of images.

    An index that is lost, damaged or locked for long while it is used is made anew of the files,
    with one warning, and the method goes on: hits are lost at most, for the rest of a record stands
    on the image's file, too (:mod:`cachefs.drivers.file_record`), where the filesystem allows it.
    """

    name: ClassVar[str]

    @property
    def quick(self) -> QuickDriver:
        """The part for an event loop."""

    def configure(self) -> None:
        """Make the index ready. Raises :class:`cachefs.errors.DriverError` where it cannot work;
        then nothing is left behind in the directory, and another driver may be configured."""

    def close(self) -> None:
        """Let go of files and memory; the driver is not used after this."""

    def reconcile(self) -> tuple[int, int]:
        """Bring files and index together: adopt each image file without a record, as :meth:`adopt`
        does, drop each record without a file. Reads the directory once, and no file's bytes. A
        record with a checksum that speaks of another file is kept, with the size that counts now,
        for :meth:`get` to tell; one without is adopted anew. Called under the cache's lock. Returns
        the numbers (adopted, dropped)."""

    def get(self, image_id: str) -> Entry | None:
        """The image's record, or None."""

    def by_inode(self, inode: int) -> Entry | None:
        """The record that has this inode number, or None."""

    def put(self, entry: Entry, path: Path) -> Entry:
        """Record *entry*, whose bytes are in the file *path* and about to be renamed into place; an
        earlier record of the ID is replaced. It speaks of that file from now on, as it is when this
        returns. Returns the entry with its inode number and its *file*. What it says is written on
        the file, where that can be; a caller that syncs the file does so before, with
        :func:`cachefs.drivers.describe`."""

    def adopt(self, image_id: str) -> Entry | None:
        """Record an image file that has no record: its times, and what was written on it when it
        was recorded last. Where that was written of the file as it was before a change, the entry
        speaks of that one, and its digest decides. None where there is no such file, or it cannot
        be recorded. Called under the cache's lock."""

    def identify(self, entry: Entry, file: str) -> None:
        """Have the record *entry* speak of *file* (:func:`file_id`); nothing happens where it is
        gone, or another publication's."""

    def remove(self, image_id: str) -> None:
        """Drop the record; nothing happens where there is none."""

    def hit(self, image_id: str, when: float, count: int = 1) -> None:
        """Count *count* hits, the last at *when*, in one cheap write that survives this process's
        death at once; nothing happens where there is no record. Raises
        :class:`cachefs.errors.IndexBusyError` where the index is locked for long."""

    def set_pinned(self, image_id: str, pinned: bool) -> bool:
        """Set or clear the pin; False where there is no record."""

    def totals(self) -> Totals:
        """Number and bytes of the images in the index."""

    def lru(self) -> Iterator[Entry]:
        """The unpinned entries, least recently accessed first, read lazily: taking the first few
        costs the same however many there are, and each is current when it is yielded. Removing
        entries while iterating is allowed."""

    def pinned(self) -> Iterator[Entry]:
        """The pinned entries, by ID."""

    def entries(self) -> Iterator[Entry]:
        """All entries, by ID."""

    def glance_records(self) -> list[GlanceRecord]:
        """What Glance records of each image, by ID; for listings of all, which cost by the image.
        The checksum is MD5 hex, None where ours is another."""

    def entries_after(self, inode: int, limit: int) -> list[Entry]:
        """At most *limit* entries with inode numbers above *inode*, in that order: a page of a
        listing whose position stays good while images come and go. Fewer than *limit* are the
        last."""

    def tidy(self) -> bool:
        """Keep the index's log short; False where a reader of another process keeps it from that.
        May wait for the disk."""

    def files(self) -> list[Path]:
        """The files besides the images that the index is kept in; some of them may be missing."""

    def disk_bytes(self) -> int:
        """The room that :meth:`files` take on the disk, in bytes."""
