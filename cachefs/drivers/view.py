"""The xattr driver's view of the files: which image comes next, and how many there are.

Owns a table in memory, made of the directory at the start, and kept current by inotify, whichever
process changes the files; and which number each file has. What a record says is not here: it is
read from the file.
"""

import errno
import logging
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cachefs.drivers import attributes, file_record
from cachefs.drivers.files import find_image, scan_images
from cachefs.drivers.index import COUNT, SCHEMA, Index
from cachefs.drivers.inode_numbers import Numbers
from cachefs.drivers.watch import DirectoryWatch
from cachefs.errors import DriverError, IndexBusyError, InvalidImageIDError
from cachefs.image import check_image_id

log = logging.getLogger(__name__)

VIEW = """
CREATE TABLE cachefs_images (
    inode INTEGER PRIMARY KEY, image_id TEXT NOT NULL, last_accessed REAL NOT NULL,
    size INTEGER NOT NULL, pinned INTEGER NOT NULL);
"""
BY_ID = "CREATE UNIQUE INDEX cachefs_by_id ON cachefs_images(image_id);"

Row = tuple[int, str, float, int, int]
"""A row of the view, in the order of its columns."""

ROW = """
INSERT OR IGNORE INTO cachefs_images(inode, image_id, last_accessed, size, pinned)
VALUES (?, ?, ?, ?, ?)
"""

QUICK_NAMES = 64
"""Names that have changed of which an event loop takes notice by itself; more are a thread's."""


class View:
    """See the module. *lock* is the driver's over threads; who uses :attr:`index` holds it."""

    def __init__(self, cache_dir: Path, lock: threading.RLock, numbers: Numbers) -> None:
        self._cache_dir = cache_dir
        self._numbers = numbers
        self._scanned = False
        self._watch: DirectoryWatch | None = None
        self._changed: set[str] = set()  # names that the view has not taken notice of
        self.lock = lock
        self.index = _view([])
        self.removed: dict[str, int] = {}
        """Removed and perhaps not unlinked yet: the inode number of the publication that is
        gone."""

    def watch(self, directories: list[Path]) -> None:
        """Start to hear of changes."""
        self._watch = DirectoryWatch(directories)

    def close(self) -> None:
        """Let go of the table and the watch."""
        self.index.close()
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def remake(self) -> tuple[int, int]:
        """As :meth:`scan`, of the directory as it is now."""
        with self.lock:
            self._opened.changed()  # Whatever it was, the scan sees it.
            return self.scan()

    @property
    def _opened(self) -> DirectoryWatch:
        if self._watch is None:
            raise DriverError(f"the index of {self._cache_dir} is not open")
        return self._watch

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows that *sql* gives, of the directory as it is now."""
        with self.lock:
            self.sync()
            return self.index.rows(sql, values)

    def sync(self) -> None:
        """Bring the view up to what has changed in the directory since the last time."""
        names = self._opened.changed()
        if names is None:
            self._scanned = False
        else:
            self._changed |= names
        if self._numbers.impatient and (not self._scanned or len(self._changed) > QUICK_NAMES):
            raise IndexBusyError(f"the index of {self._cache_dir}: too much has changed")
        if not self._scanned:
            self.scan()
        for name in list(self._changed):
            self.refresh(name)
            self._changed.discard(name)

    def scan(self) -> tuple[int, int]:
        """Make the view anew, all of it at once, for one row at a time costs several times as much.
        What is not plain is left to :meth:`refresh`, name by name: removed and perhaps unlinked,
        a number that makes no sense or that two files have, one that another process is writing."""
        self._scanned = False  # If this fails, the changes it was to see are still to be seen.
        self._changed.clear()
        gone = {row[0] for row in self.index.rows("SELECT image_id FROM cachefs_images")}
        rows: dict[str, Row] = {}
        numbers: set[int] = set()
        new: list[Row] = []
        odd = set(self.removed)
        for image_id, found in scan_images(self._cache_dir):
            gone.discard(image_id)
            if image_id in odd:
                continue
            try:
                inode, pinned = attributes.scan(self.path_of(image_id))
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
        before, self.index = self.index, _view(rows.values())
        before.close()
        with self.index.transaction():
            adopted += sum(self.refresh(image_id) for image_id in odd)
        self._scanned = True
        return adopted, len(gone)

    def _adopt(self, new: list[Row], rows: dict[str, Row], odd: set[str], known: int) -> int:
        """Number the files of the rows *new*, above *known*, and add them to *rows*; those that
        cannot be are added to *odd*. Returns how many were numbered."""
        adopted = 0
        first = self.new_number(len(new), known) if new else 0
        for inode, (_, image_id, accessed, size, pinned) in enumerate(new, first):
            try:
                attributes.number(self.path_of(image_id), inode)
            except OSError:
                odd.add(image_id)
            else:
                rows[image_id] = (inode, image_id, accessed, size, pinned)
                adopted += 1
        return adopted

    def refresh(self, image_id: str) -> bool:
        """Make the row of one name what its file says now; True if the file was adopted."""
        path = self.path_of(image_id)
        found = find_image(self._cache_dir, image_id)
        if found is None:
            self.removed.pop(image_id, None)
            self.forget(image_id)
            return False
        try:
            inode, adopted = self.number(path)
            pinned = attributes.read(path, file_record.PINNED) is not None
        except OSError as error:
            self.forget(image_id)
            if error.errno != errno.ENOENT:
                log.warning("image %r is left out of the cache: %s", image_id, error)
            return False
        if self.removed.get(image_id) == inode:
            self.forget(image_id)
            return False
        self.removed.pop(image_id, None)
        if not self.file(image_id, inode, found.st_atime, found.st_size, pinned):
            self._settle(image_id, inode)
        return adopted

    def _settle(self, image_id: str, inode: int) -> None:
        """Two names have one number: a file was renamed, or copied with its attributes."""
        for (other,) in self.index.rows(
            "SELECT image_id FROM cachefs_images WHERE inode = ?", (inode,)
        ):
            if self._is_same_file(image_id, other):
                self._leave_out_one_of(image_id, other)
                return
            self.forget(other)
            with suppress(FileNotFoundError):
                number = attributes.read(self.path_of(other), attributes.INODE)
                if attributes.inode_number(number) == inode:
                    new = str(self.new_number())
                    attributes.write(self.path_of(image_id), attributes.INODE, new)
            self.refresh(other)
        self.refresh(image_id)

    def is_others(self, image_id: str) -> bool:
        """Whether the file is another image's, and that one's still: a hard link, which can be no
        image of its own, since one file has one record."""
        named = attributes.read(self.path_of(image_id), file_record.IMAGE)
        if named is None or named == image_id:
            return False
        with suppress(InvalidImageIDError):  # anybody may have written it
            return self._is_same_file(image_id, check_image_id(named))
        return False

    def _is_same_file(self, one: str, other: str) -> bool:
        try:
            return os.path.samestat(os.lstat(self.path_of(one)), os.lstat(self.path_of(other)))
        except FileNotFoundError:
            return False

    def _leave_out_one_of(self, image_id: str, other: str) -> None:
        """One file has two names (a hard link), and can have one record: the image is the name that
        this is of, or that came first."""
        named = attributes.read(self.path_of(image_id), file_record.IMAGE)
        stays, goes = (image_id, other) if named == image_id else (other, image_id)
        log.warning("image %r is left out of the cache: it is the file of %r", goes, stays)
        self.forget(goes)
        if stays == image_id:
            self.refresh(image_id)

    def file(
        self, image_id: str, inode: int, last_accessed: float, size: int, pinned: bool
    ) -> bool:
        """Replace the row of the image; False where another image has the number."""
        self.forget(image_id)
        return bool(self.index.run(ROW, (inode, image_id, last_accessed, size, int(pinned))))

    def forget(self, image_id: str) -> None:
        """Drop the row of the image."""
        self.index.run("DELETE FROM cachefs_images WHERE image_id = ?", (image_id,))

    def number(self, path: str) -> tuple[int, bool]:
        """The file's inode number, and whether it was given one just now."""
        text = attributes.read(path, attributes.INODE)
        number = attributes.inode_number(text)
        if number:
            return number, False
        number = self.new_number()
        if text is not None:
            attributes.write(path, attributes.INODE, str(number))
        elif not attributes.create(path, attributes.INODE, str(number)):
            return self.number(path)  # Another process was quicker.
        return number, True

    def new_number(self, count: int = 1, known: int = 0) -> int:
        """As :meth:`Numbers.new`, above all that the view has, too."""
        with self.lock:
            [(filed,)] = self.index.rows("SELECT coalesce(max(inode), 0) FROM cachefs_images")
            return self._numbers.new(count, max(known, filed))

    def path_of(self, image_id: str) -> str:
        """The image's file."""
        return f"{self._cache_dir}/{image_id}"  # Path's "/" costs as much as a system call.


def _view(rows: Iterable[Row]) -> Index:
    """A view of *rows*. Indexes and triggers come last, for a row costs more with each; in the
    order of the numbers, rows are only ever appended."""
    index = Index(":memory:")
    try:
        index.script(VIEW)
        index.fill(ROW, sorted(rows))
        index.script(BY_ID + SCHEMA + COUNT)
    except BaseException:
        index.close()
        raise
    return index
