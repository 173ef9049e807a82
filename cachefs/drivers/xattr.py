"""The driver that keeps every record on the image's own file: extended attributes, LRU by atime.

Owns the attributes in :mod:`cachefs.drivers.attributes` and the atime of the images, and
``.cachefs/changed/``. The files are the truth, and what is said of one image is read from its file.
Which image comes next, and how many there are, is answered by :mod:`cachefs.drivers.view`, a table
in memory; inode numbers are :mod:`cachefs.drivers.inode_numbers`'.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from cachefs.drivers import attributes, file_record
from cachefs.drivers.base import Entry, GlanceRecord, Totals, glance_record
from cachefs.drivers.files import find_checked
from cachefs.drivers.index import LRU_NEXT, LRU_START
from cachefs.drivers.inode_numbers import Numbers
from cachefs.drivers.private import private_dir
from cachefs.drivers.view import View
from cachefs.drivers.xattr_quick import XattrQuick
from cachefs.errors import DriverError, IndexBusyError

log = logging.getLogger(__name__)

PAGE = 500
"""Rows that a listing reads at a time."""

MOST_HITS = 10**18 - 1
"""Hits beyond are not counted: a longer number would be none (:func:`attributes.decimal`)."""


class XattrDriver:
    """See the module, and :class:`cachefs.drivers.base.Driver` for the methods.

    Two moments are the caller's: between :meth:`put` and the rename the image has a record and no
    file, and :meth:`get` finds none; between :meth:`remove` and the unlink it has a file and no
    record. *clock_ns* gives nanoseconds since the epoch, and is used for inode numbers only.
    """

    name: ClassVar[str] = "xattr"

    def __init__(self, cache_dir: Path, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._cache_dir = cache_dir
        self._own_dir = cache_dir / ".cachefs"
        self._signal_dir = self._own_dir / "changed"
        self._lock = threading.RLock()
        self._numbers = Numbers(self._own_dir / "inodes", self._lock, clock_ns)
        self._view = View(cache_dir, self._lock, self._numbers)
        self.quick = XattrQuick(self)
        # What could not be written on a file (an immutable one): the number of the publication, and
        # which file it is.
        self._identified: dict[str, tuple[int, str]] = {}

    def configure(self) -> None:
        """Try user attributes in ``.cachefs/``, and start watching. Raises :class:`DriverError`."""
        directories = self._own_dir, self._signal_dir
        made = [directory for directory in directories if not directory.exists()]
        try:
            private_dir(self._cache_dir)
            self._signal_dir.mkdir(mode=0o700, exist_ok=True)
            self._probe(self._own_dir / f"probe.{os.getpid()}.{threading.get_ident()}")
            self._numbers.open()
        except OSError as error:
            for directory in reversed(made):
                with suppress(OSError):  # In use by others now; the first error is the one to tell.
                    directory.rmdir()
            self.close()
            unsupported = error.errno == errno.ENOTSUP
            why = "no user extended attributes here" if unsupported else error
            raise DriverError(f"{self._cache_dir}: {why}") from error
        self._view.watch([self._cache_dir, self._signal_dir])

    def close(self) -> None:
        """As the contract says."""
        with self._lock:
            self._view.close()
            self._numbers.close()

    def reconcile(self) -> tuple[int, int]:
        """Make the view anew. Adopted are the files that no cachefs has numbered before; dropped is
        what the view had and the directory has not: nothing when it is made for the first time."""
        return self._view.remake()

    def get(self, image_id: str) -> Entry | None:
        """The record, read from the file; None where it cannot be read, or be given a number: then
        it is left out of everything."""
        entry = self.read(image_id)
        if entry is None or entry.inode:
            return entry
        try:
            entry = replace(entry, inode=self._view.number(self._view.path_of(image_id))[0])
        except OSError as error:
            log.debug("image %r is left out of the cache: %s", image_id, error)
            return None
        return None if self._view.removed.get(image_id) == entry.inode else entry

    def read(self, image_id: str) -> Entry | None:
        """As :meth:`get`, but a file without a number is given none: its entry has 0. Waits for
        nobody."""
        try:
            found = find_checked(self._cache_dir, image_id)
            if found is None:
                return None
            entry = attributes.read_entry(image_id, self._view.path_of(image_id), found)
            if entry.file == file_record.NO_FILE and self._view.is_others(image_id):
                return None
        except OSError as error:
            log.debug("the record of image %r cannot be read: %s", image_id, error)
            return None
        known = self._identified.get(image_id)
        if known is not None and known[0] == entry.inode:
            entry = replace(entry, file=known[1])
        return None if entry.inode and self._view.removed.get(image_id) == entry.inode else entry

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is done meanwhile, by an event loop, waits for no thread and no process, but raises
        IndexBusyError."""
        if not self._lock.acquire(blocking=False):
            raise IndexBusyError(f"the index of {self._cache_dir}: another thread is at it")
        try:
            self._numbers.impatient = True
            yield
        finally:
            self._numbers.impatient = False
            self._lock.release()

    def by_inode(self, inode: int) -> Entry | None:
        """As the contract says."""
        rows = self._view.rows("SELECT image_id FROM cachefs_images WHERE inode = ?", inode)
        entry = self.get(rows[0][0]) if rows else None
        return entry if entry is not None and entry.inode == inode else None

    def put(self, entry: Entry, path: Path) -> Entry:
        """Write the record on the file *path*; a last_modified of 0 leaves the file's mtime."""
        with self._lock:
            self._view.sync()
            entry = replace(entry, inode=self._view.new_number())
            entry = attributes.write_entry(str(path), entry)
            self._identified.pop(entry.image_id, None)
            self._view.removed.pop(entry.image_id, None)
            self._view.file(
                entry.image_id, entry.inode, entry.last_accessed, entry.size, entry.pinned
            )
            return entry

    def adopt(self, image_id: str) -> Entry | None:
        """As the contract says: what was written on the file is its record again."""
        with self._lock:
            self._view.sync()
            try:
                if (
                    self._view.removed.pop(image_id, None) is not None
                ):  # another publication from now on
                    number = str(self._view.new_number())
                    attributes.write(self._view.path_of(image_id), attributes.INODE, number)
            except OSError as error:
                log.warning("cannot adopt image %r: %s", image_id, error)
                return None
            self._view.refresh(image_id)
            return self.get(image_id)

    def identify(self, entry: Entry, file: str) -> None:
        """As the contract says; on a file that cannot be written it is remembered for the life of
        this process."""
        with self._lock:
            found = self.read(entry.image_id)
            if found is None or found.inode != entry.inode:
                return
            try:
                attributes.write(self._view.path_of(entry.image_id), file_record.FILE, file)
            except FileNotFoundError:
                return
            except OSError as error:
                log.debug("image %r: what file it is is not kept: %s", entry.image_id, error)
                self._identified[entry.image_id] = entry.inode, file
            else:
                self._identified.pop(entry.image_id, None)

    def remove(self, image_id: str) -> None:
        """Drop the record; the file is let be, for the caller to unlink."""
        with self._lock:
            rows = self._view.rows("SELECT inode FROM cachefs_images WHERE image_id = ?", image_id)
            if rows:
                self._view.removed[image_id] = rows[0][0]
                self._view.forget(image_id)

    def hit(self, image_id: str, when: float, count: int = 1) -> None:
        """Two writes on the file's inode, which are the kernel's when this returns."""
        path = self._view.path_of(image_id)
        with self._lock, self._numbers.across_processes():
            if image_id in self._view.removed:
                self._view.sync()
            found = find_checked(self._cache_dir, image_id)
            if found is None or image_id in self._view.removed:
                return
            try:
                hits = attributes.decimal(attributes.read(path, attributes.HITS))
                attributes.write(path, attributes.HITS, str(min(hits + count, MOST_HITS)))
                attributes.set_accessed(path, when)
            except FileNotFoundError:
                return
            self._view.index.run(
                "UPDATE cachefs_images SET last_accessed = ? WHERE image_id = ?", (when, image_id)
            )

    def set_pinned(self, image_id: str, pinned: bool) -> bool:
        """As the contract says."""
        with self._lock:
            if self.get(image_id) is None:
                return False
            try:
                attributes.write(
                    self._view.path_of(image_id), file_record.PINNED, "1" if pinned else ""
                )
            except FileNotFoundError:
                return False
            self._view.refresh(image_id)
        # No name changes by this, so other processes would not look at the file: make one change.
        signal = self._signal_dir / image_id
        signal.touch()
        signal.unlink(missing_ok=True)
        return True

    def tidy(self) -> bool:
        """There is no log."""
        return True

    def files(self) -> list[Path]:
        """As the contract says: the counter of numbers. What is on the images' own inodes is their
        files'."""
        return self._numbers.files()

    def disk_bytes(self) -> int:
        """As the contract says."""
        return self._numbers.disk_bytes()

    def totals(self) -> Totals:
        """As the contract says."""
        with self._lock:
            self._view.sync()
            return self._view.index.totals()

    def lru(self) -> Iterator[Entry]:
        """Every entry is read from its file at its step. One that another process has hit since it
        was filed moves to its place in the order, and is met there."""
        position: tuple[Any, ...] = LRU_START
        while rows := self._view.rows(LRU_NEXT, *position):
            [(image_id, last_accessed, inode)] = rows
            position = (last_accessed, inode)
            entry = self.get(image_id)
            if (
                entry is None
                or entry.pinned
                or entry.inode != inode
                or entry.last_accessed > last_accessed
            ):
                with self._lock:
                    self._view.refresh(image_id)
            else:
                yield entry

    def pinned(self) -> Iterator[Entry]:
        """As the contract says."""
        yield from self._existing(
            self._view.rows(
                "SELECT image_id FROM cachefs_images WHERE pinned = 1 ORDER BY image_id"
            )
        )

    def entries(self) -> Iterator[Entry]:
        """As the contract says."""
        page = "SELECT image_id FROM cachefs_images WHERE image_id > ? ORDER BY image_id LIMIT ?"
        after = ""
        while rows := self._view.rows(page, after, PAGE):
            yield from self._existing(rows)
            after = rows[-1][0]

    def glance_records(self) -> list[GlanceRecord]:
        """As the contract says."""
        return [glance_record(entry) for entry in self.entries()]

    def entries_after(self, inode: int, limit: int) -> list[Entry]:
        """As the contract says."""
        page = "SELECT image_id, inode FROM cachefs_images WHERE inode > ? ORDER BY inode LIMIT ?"
        found: list[Entry] = []
        while len(found) < limit and (rows := self._view.rows(page, inode, limit - len(found))):
            found += self._existing(rows)
            inode = rows[-1][1]
        return found

    # Inside

    def _existing(self, rows: list[tuple[Any, ...]]) -> list[Entry]:
        entries = (self.get(row[0]) for row in rows)
        return [entry for entry in entries if entry is not None]

    def _probe(self, path: Path) -> None:
        path.touch()
        try:
            attributes.write(str(path), attributes.HITS, "1")
        finally:
            path.unlink()
