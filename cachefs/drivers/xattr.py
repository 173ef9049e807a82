"""The driver that keeps every record on the image's own file: extended attributes, LRU by atime.

Owns the attributes in :mod:`cachefs.drivers.attributes` and the atime of the images, and
``.cachefs/inodes`` and ``.cachefs/changed/``. The files are the truth, and what is said of one
image is read from its file. Which image comes next, and how many there are, is answered by a table
in memory: a view of the files, made at start and kept current by inotify, whichever process
changes them.
"""

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from cachefs.drivers import attributes, file_record
from cachefs.drivers.base import Entry, GlanceRecord, Totals, glance_record
from cachefs.drivers.files import find_checked, find_image, scan_images
from cachefs.drivers.index import COUNT, LRU_NEXT, LRU_START, SCHEMA, Index
from cachefs.drivers.private import private_dir
from cachefs.drivers.watch import DirectoryWatch
from cachefs.errors import DriverError, IndexBusyError

log = logging.getLogger(__name__)

VIEW = """
CREATE TABLE cachefs_images (
    inode INTEGER PRIMARY KEY, image_id TEXT NOT NULL, last_accessed REAL NOT NULL,
    size INTEGER NOT NULL, pinned INTEGER NOT NULL);
"""
BY_ID = "CREATE UNIQUE INDEX cachefs_by_id ON cachefs_images(image_id);"

Row = tuple[int, str, float, int, int]
"""A row of the view, in the order of its columns."""

FILE = """
INSERT OR IGNORE INTO cachefs_images(inode, image_id, last_accessed, size, pinned)
VALUES (?, ?, ?, ?, ?)
"""

PAGE = 500
"""Rows that a listing reads at a time."""

QUICK_NAMES = 64
"""Names that have changed of which an event loop takes notice by itself; more are a thread's."""

MOST_HITS = 10**18 - 1
"""Hits beyond are not counted: a longer number would be none (:func:`attributes.decimal`)."""


class XattrQuick:
    """See :class:`cachefs.drivers.base.QuickDriver`."""

    is_untidy = False

    def __init__(self, driver: "XattrDriver") -> None:
        self._driver = driver

    def get(self, image_id: str) -> Entry | None:
        """As the contract says; a file without a number is given one by a thread."""
        entry = self._driver.read(image_id)
        if entry is not None and entry.inode == 0:
            raise IndexBusyError(f"image {image_id!r} has no number yet")
        return entry

    def by_inode(self, inode: int) -> Entry | None:
        """As the contract says."""
        with self._driver.at_once():
            return self._driver.by_inode(inode)

    def entries_after(self, inode: int, limit: int) -> list[Entry]:
        """As the contract says."""
        with self._driver.at_once():
            return self._driver.entries_after(inode, limit)

    def totals(self) -> Totals:
        """As the contract says."""
        with self._driver.at_once():
            return self._driver.totals()

    def hit(self, image_id: str, when: float, count: int = 1) -> None:
        """As the contract says."""
        with self._driver.at_once():
            self._driver.hit(image_id, when, count)


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
        self._clock_ns = clock_ns
        self._lock = threading.RLock()
        self._index = _view([])
        self._scanned = False
        self._watch: DirectoryWatch | None = None
        self._lock_fd = -1
        self._depth = 0
        self._impatient = False  # while an event loop holds the lock
        self._changed: set[str] = set()  # names that the view has not taken notice of
        self.quick = XattrQuick(self)
        # What could not be written on a file (an immutable one): the number of the publication, and
        # which file it is.
        self._identified: dict[str, tuple[int, str]] = {}
        # Removed and perhaps not unlinked yet: the inode number of the publication that is gone.
        self._removed: dict[str, int] = {}

    def configure(self) -> None:
        """Try user attributes in ``.cachefs/``, and start watching. Raises :class:`DriverError`."""
        directories = self._own_dir, self._signal_dir
        made = [directory for directory in directories if not directory.exists()]
        try:
            private_dir(self._cache_dir)
            self._signal_dir.mkdir(mode=0o700, exist_ok=True)
            self._probe(self._own_dir / f"probe.{os.getpid()}.{threading.get_ident()}")
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._lock_fd = os.open(self._own_dir / "inodes", flags | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            for directory in reversed(made):
                with suppress(OSError):  # In use by others now; the first error is the one to tell.
                    directory.rmdir()
            self.close()
            unsupported = error.errno == errno.ENOTSUP
            why = "no user extended attributes here" if unsupported else error
            raise DriverError(f"{self._cache_dir}: {why}") from error
        self._watch = DirectoryWatch([self._cache_dir, self._signal_dir])

    def close(self) -> None:
        """As the contract says."""
        with self._lock:
            self._index.close()
            if self._watch is not None:
                self._watch.close()
                self._watch = None
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
                self._lock_fd = -1

    def reconcile(self) -> tuple[int, int]:
        """Make the view anew. Adopted are the files that no cachefs has numbered before; dropped is
        what the view had and the directory has not: nothing when it is made for the first time."""
        with self._lock:
            self._opened.changed()  # Whatever it was, the scan sees it.
            return self._scan()

    def get(self, image_id: str) -> Entry | None:
        """The record, read from the file; None where it cannot be read, or be given a number: then
        it is left out of everything."""
        entry = self.read(image_id)
        if entry is None or entry.inode:
            return entry
        try:
            entry = replace(entry, inode=self._number(self._path(image_id))[0])
        except OSError as error:
            log.debug("image %r is left out of the cache: %s", image_id, error)
            return None
        return None if self._removed.get(image_id) == entry.inode else entry

    def read(self, image_id: str) -> Entry | None:
        """As :meth:`get`, but a file without a number is given none: its entry has 0. Waits for
        nobody."""
        try:
            found = find_checked(self._cache_dir, image_id)
            if found is None:
                return None
            entry = attributes.read_entry(image_id, self._path(image_id), found)
        except OSError as error:
            log.debug("the record of image %r cannot be read: %s", image_id, error)
            return None
        known = self._identified.get(image_id)
        if known is not None and known[0] == entry.inode:
            entry = replace(entry, file=known[1])
        return None if entry.inode and self._removed.get(image_id) == entry.inode else entry

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is done meanwhile, by an event loop, waits for no thread and no process, but raises
        IndexBusyError."""
        if not self._lock.acquire(blocking=False):
            raise IndexBusyError(f"the index of {self._cache_dir}: another thread is at it")
        try:
            self._impatient = True
            yield
        finally:
            self._impatient = False
            self._lock.release()

    def by_inode(self, inode: int) -> Entry | None:
        """As the contract says."""
        rows = self._rows("SELECT image_id FROM cachefs_images WHERE inode = ?", inode)
        entry = self.get(rows[0][0]) if rows else None
        return entry if entry is not None and entry.inode == inode else None

    def put(self, entry: Entry, path: Path) -> Entry:
        """Write the record on the file *path*; a last_modified of 0 leaves the file's mtime."""
        with self._lock:
            self._sync()
            entry = replace(entry, inode=self._new_number())
            entry = attributes.write_entry(str(path), entry)
            self._identified.pop(entry.image_id, None)
            self._removed.pop(entry.image_id, None)
            self._file(entry.image_id, entry.inode, entry.last_accessed, entry.size, entry.pinned)
            return entry

    def adopt(self, image_id: str) -> Entry | None:
        """As the contract says: what was written on the file is its record again."""
        with self._lock:
            self._sync()
            try:
                if self._removed.pop(image_id, None) is not None:  # another publication from now on
                    number = str(self._new_number())
                    attributes.write(self._path(image_id), attributes.INODE, number)
            except OSError as error:
                log.warning("cannot adopt image %r: %s", image_id, error)
                return None
            self._refresh(image_id)
            return self.get(image_id)

    def identify(self, entry: Entry, file: str) -> None:
        """As the contract says; on a file that cannot be written it is remembered for the life of
        this process."""
        with self._lock:
            found = self.read(entry.image_id)
            if found is None or found.inode != entry.inode:
                return
            try:
                attributes.write(self._path(entry.image_id), file_record.FILE, file)
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
            rows = self._rows("SELECT inode FROM cachefs_images WHERE image_id = ?", image_id)
            if rows:
                self._removed[image_id] = rows[0][0]
                self._forget(image_id)

    def hit(self, image_id: str, when: float, count: int = 1) -> None:
        """Two writes on the file's inode, which are the kernel's when this returns."""
        path = self._path(image_id)
        with self._lock, self._across_processes():
            if image_id in self._removed:
                self._sync()
            found = find_checked(self._cache_dir, image_id)
            if found is None or image_id in self._removed:
                return
            try:
                hits = attributes.decimal(attributes.read(path, attributes.HITS))
                attributes.write(path, attributes.HITS, str(min(hits + count, MOST_HITS)))
                attributes.set_accessed(path, when)
            except FileNotFoundError:
                return
            self._index.run(
                "UPDATE cachefs_images SET last_accessed = ? WHERE image_id = ?", (when, image_id)
            )

    def set_pinned(self, image_id: str, pinned: bool) -> bool:
        """As the contract says."""
        with self._lock:
            if self.get(image_id) is None:
                return False
            try:
                attributes.write(self._path(image_id), file_record.PINNED, "1" if pinned else "")
            except FileNotFoundError:
                return False
            self._refresh(image_id)
        # No name changes by this, so other processes would not look at the file: make one change.
        signal = self._signal_dir / image_id
        signal.touch()
        signal.unlink(missing_ok=True)
        return True

    def tidy(self) -> bool:
        """There is no log."""
        return True

    def files(self) -> list[Path]:
        """As the contract says: the counter of numbers."""
        return [self._own_dir / "inodes"]

    def disk_bytes(self) -> int:
        """As the contract says: the counter of numbers. What is on the images' own inodes is their
        files'."""
        try:
            return os.fstat(self._lock_fd).st_size
        except OSError as error:  # closed
            raise DriverError(f"the index of {self._cache_dir} is not open") from error

    def totals(self) -> Totals:
        """As the contract says."""
        with self._lock:
            self._sync()
            return self._index.totals()

    def lru(self) -> Iterator[Entry]:
        """Every entry is read from its file at its step. One that another process has hit since it
        was filed moves to its place in the order, and is met there."""
        position: tuple[Any, ...] = LRU_START
        while rows := self._rows(LRU_NEXT, *position):
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
                    self._refresh(image_id)
            else:
                yield entry

    def pinned(self) -> Iterator[Entry]:
        """As the contract says."""
        yield from self._existing(
            self._rows("SELECT image_id FROM cachefs_images WHERE pinned = 1 ORDER BY image_id")
        )

    def entries(self) -> Iterator[Entry]:
        """As the contract says."""
        page = "SELECT image_id FROM cachefs_images WHERE image_id > ? ORDER BY image_id LIMIT ?"
        after = ""
        while rows := self._rows(page, after, PAGE):
            yield from self._existing(rows)
            after = rows[-1][0]

    def glance_records(self) -> list[GlanceRecord]:
        """As the contract says."""
        return [glance_record(entry) for entry in self.entries()]

    def entries_after(self, inode: int, limit: int) -> list[Entry]:
        """As the contract says."""
        page = "SELECT image_id, inode FROM cachefs_images WHERE inode > ? ORDER BY inode LIMIT ?"
        found: list[Entry] = []
        while len(found) < limit and (rows := self._rows(page, inode, limit - len(found))):
            found += self._existing(rows)
            inode = rows[-1][1]
        return found

    # The view

    @property
    def _opened(self) -> DirectoryWatch:
        if self._watch is None:
            raise DriverError(f"the index of {self._cache_dir} is not open")
        return self._watch

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            self._sync()
            return self._index.rows(sql, values)

    def _existing(self, rows: list[tuple[Any, ...]]) -> list[Entry]:
        entries = (self.get(row[0]) for row in rows)
        return [entry for entry in entries if entry is not None]

    def _sync(self) -> None:
        """Bring the view up to what has changed in the directory since the last time."""
        names = self._opened.changed()
        if names is None:
            self._scanned = False
        else:
            self._changed |= names
        if self._impatient and (not self._scanned or len(self._changed) > QUICK_NAMES):
            raise IndexBusyError(f"the index of {self._cache_dir}: too much has changed")
        if not self._scanned:
            self._scan()
        for name in list(self._changed):
            self._refresh(name)
            self._changed.discard(name)

    def _scan(self) -> tuple[int, int]:
        """Make the view anew, all of it at once, for one row at a time costs several times as much.
        What is not plain is left to :meth:`_refresh`, name by name: removed and perhaps unlinked,
        a number that makes no sense or that two files have, one that another process is writing."""
        self._scanned = False  # If this fails, the changes it was to see are still to be seen.
        self._changed.clear()
        gone = {row[0] for row in self._index.rows("SELECT image_id FROM cachefs_images")}
        rows: dict[str, Row] = {}
        numbers: set[int] = set()
        new: list[Row] = []
        odd = set(self._removed)
        for image_id, found in scan_images(self._cache_dir):
            gone.discard(image_id)
            if image_id in odd:
                continue
            try:
                inode, pinned = attributes.scan(self._path(image_id))
            except OSError:
                odd.add(image_id)
                continue
            row = (inode or 0, image_id, found.st_atime, found.st_size, int(pinned))
            if inode is None:
                new.append(row)
            elif inode == 0 or inode in numbers:
                odd.add(image_id)
            else:
                numbers.add(inode)
                rows[image_id] = row
        adopted = self._adopt(new, rows, odd, max(numbers, default=0))
        before, self._index = self._index, _view(rows.values())
        before.close()
        with self._index.transaction():
            adopted += sum(self._refresh(image_id) for image_id in odd)
        self._scanned = True
        return adopted, len(gone)

    def _adopt(self, new: list[Row], rows: dict[str, Row], odd: set[str], known: int) -> int:
        """Number the files of the rows *new*, above *known*, and add them to *rows*; those that
        cannot be are added to *odd*. Returns how many were numbered."""
        adopted = 0
        first = self._new_number(len(new), known) if new else 0
        for inode, (_, image_id, accessed, size, pinned) in enumerate(new, first):
            try:
                attributes.number(self._path(image_id), inode)
            except OSError:
                odd.add(image_id)
            else:
                rows[image_id] = (inode, image_id, accessed, size, pinned)
                adopted += 1
        return adopted

    def _refresh(self, image_id: str) -> bool:
        """Make the row of one name what its file says now; True if the file was adopted."""
        path = self._path(image_id)
        found = find_image(self._cache_dir, image_id)
        if found is None:
            self._removed.pop(image_id, None)
            self._forget(image_id)
            return False
        try:
            inode, adopted = self._number(path)
            pinned = attributes.read(path, file_record.PINNED) is not None
        except OSError as error:
            self._forget(image_id)
            if error.errno != errno.ENOENT:
                log.warning("image %r is left out of the cache: %s", image_id, error)
            return False
        if self._removed.get(image_id) == inode:
            self._forget(image_id)
            return False
        self._removed.pop(image_id, None)
        if not self._file(image_id, inode, found.st_atime, found.st_size, pinned):
            self._settle(image_id, inode)
        return adopted

    def _settle(self, image_id: str, inode: int) -> None:
        """Two names have one number: a file was renamed, or copied with its attributes."""
        for (other,) in self._index.rows(
            "SELECT image_id FROM cachefs_images WHERE inode = ?", (inode,)
        ):
            self._forget(other)
            with suppress(FileNotFoundError):
                number = attributes.read(self._path(other), attributes.INODE)
                if attributes.inode_number(number) == inode:
                    new = str(self._new_number())
                    attributes.write(self._path(image_id), attributes.INODE, new)
            self._refresh(other)
        self._refresh(image_id)

    def _file(
        self, image_id: str, inode: int, last_accessed: float, size: int, pinned: bool
    ) -> bool:
        """Replace the row of the image; False where another image has the number."""
        self._forget(image_id)
        return bool(self._index.run(FILE, (inode, image_id, last_accessed, size, int(pinned))))

    def _forget(self, image_id: str) -> None:
        self._index.run("DELETE FROM cachefs_images WHERE image_id = ?", (image_id,))

    # Inode numbers, and the lock that they share with hits

    def _number(self, path: str) -> tuple[int, bool]:
        """The file's inode number, and whether it was given one just now."""
        text = attributes.read(path, attributes.INODE)
        number = attributes.inode_number(text)
        if number:
            return number, False
        number = self._new_number()
        if text is not None:
            attributes.write(path, attributes.INODE, str(number))
        elif not attributes.create(path, attributes.INODE, str(number)):
            return self._number(path)  # Another process was quicker.
        return number, True

    def _new_number(self, count: int = 1, known: int = 0) -> int:
        """A number above *known* that no process has been given, and that none will be; the first
        of *count* such in a row.

        INVARIANT: inode numbers rise. Beside the last one, in ``.cachefs/inodes``, the microseconds
        since the epoch are a floor, for that file is not synced and may go back or be lost. To
        write a number takes longer than the microsecond by which it moves the floor.
        """
        with self._lock, self._across_processes():
            last = attributes.decimal(os.pread(self._lock_fd, 18, 0).decode(errors="replace"))
            [(filed,)] = self._index.rows("SELECT coalesce(max(inode), 0) FROM cachefs_images")
            number = int(max(last + 1, known + 1, filed + 1, self._clock_ns() // 1000))
            os.pwrite(self._lock_fd, f"{number + count - 1:018d}\n".encode(), 0)
            return number

    @contextmanager
    def _across_processes(self) -> Iterator[None]:
        """One process at a time; the thread lock is held. Not a lock on the image: readers hold
        theirs on it for long. Nested, the outermost lets go, for one descriptor has one lock."""
        if self._depth == 0:
            try:
                how = fcntl.LOCK_EX | (fcntl.LOCK_NB if self._impatient else 0)
                fcntl.flock(self._lock_fd, how)
            except BlockingIOError as error:
                raise IndexBusyError(
                    f"the index of {self._cache_dir}: another process is at it"
                ) from error
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def _probe(self, path: Path) -> None:
        path.touch()
        try:
            attributes.write(str(path), attributes.HITS, "1")
        finally:
            path.unlink()

    def _path(self, image_id: str) -> str:
        return f"{self._cache_dir}/{image_id}"  # Path's "/" costs as much as a system call.


def _view(rows: Iterable[Row]) -> Index:
    """A view of *rows*. Indexes and triggers come last, for a row costs more with each; in the
    order of the numbers, rows are only ever appended."""
    index = Index(":memory:")
    try:
        index.script(VIEW)
        index.fill(FILE, sorted(rows))
        index.script(BY_ID + SCHEMA + COUNT)
    except BaseException:
        index.close()
        raise
    return index
