"""The driver that keeps the index in ``cache.db``, in Glance's table and one of ours beside it.

Owns what is recorded and asked there. What the tables are is :mod:`cachefs.drivers.tables`', which
database is open, and that one is made anew, :mod:`cachefs.drivers.database`'s. A real Glance may
read and write its table while we do. The database is an index of the files: what it loses in a
power cut (``synchronous=NORMAL``), :meth:`SqliteDriver.reconcile` finds again in the directory,
with what :mod:`cachefs.drivers.file_record` has written on the files.
"""

import logging
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from cachefs.drivers import file_record, place, tables
from cachefs.drivers.base import Entry, GlanceRecord, Totals, file_id, size_in
from cachefs.drivers.database import Database
from cachefs.drivers.files import find_image, scan_images
from cachefs.drivers.index import COUNT, LRU_NEXT, LRU_START, Index
from cachefs.drivers.sqlite_quick import SqliteQuick
from cachefs.errors import CacheFSError, DriverError, IndexBusyError, NoRoomError

log = logging.getLogger(__name__)

PAGE = 500
"""Rows that a listing reads at a time."""


class SqliteDriver:
    """See the module, and :class:`cachefs.drivers.base.Driver` for the methods. *database* is
    another place for it, in ``.cachefs/``, which Glance does not know."""

    name: ClassVar[str] = "sqlite"

    def __init__(self, cache_dir: Path, database: Path | None = None) -> None:
        self._cache_dir = cache_dir
        self._database = Database(cache_dir, self.reconcile, database)
        self._asked = self._database.asked
        self.quick = SqliteQuick(self._database.connections_at_once)

    def configure(self) -> None:
        """Open the database, and create or upgrade it; one that cannot be used is set aside, and a
        new one made. Raises :class:`DriverError` where there is no such directory."""
        if not self._cache_dir.is_dir():
            raise DriverError(f"{self._cache_dir} is no directory")
        self._database.open()

    def close(self) -> None:
        """As the contract says."""
        self._database.close()

    def reconcile(self) -> tuple[int, int]:
        """As the contract says."""
        # The directory is read outside the transaction, so that other processes' hits need not wait
        # for it. What differs is looked at again inside: a Glance beside us takes no lock of ours.
        files = {image_id: file_id(found) for image_id, found in scan_images(self._cache_dir)}
        try:
            numbers = self._asked(lambda index: self._bring_together(index, dict(files)))
        except NoRoomError as error:
            self._database.give_up(error)
            return self._asked(lambda index: self._bring_together(index, dict(files)))
        self._describe_all()
        return numbers

    def _describe_all(self) -> None:
        """Write on the files what a version of ours has recorded that did not do so; once."""
        if self._asked(lambda index: index.row(tables.IS_DESCRIBED)) is not None:
            return
        if file_record.is_possible(str(self._cache_dir)):
            for entry in self.entries():
                file_record.describe_at(self._file_of(entry.image_id), entry)
            with suppress(NoRoomError):  # then again at the next start
                self._asked(lambda index: index.run(tables.DESCRIBED))

    def _bring_together(self, index: Index, files: dict[str, str]) -> tuple[int, int]:
        dropped = 0
        taken_up: list[tuple[str, str]] = []
        with index.transaction():
            for statement in (tables.DROP_NONSENSE + tables.CATCH_UP + COUNT).split(";"):
                index.run(statement)
            for image_id, size, file, checksum in index.rows(tables.RECORDED):
                now = files.get(image_id)
                if now is None or now != file or size != size_in(now):
                    try:
                        found = find_image(self._cache_dir, image_id)
                    except OSError:  # the scan has said so; it may be read again one day
                        files.pop(image_id, None)
                        continue
                    now = file_id(found) if found is not None else None
                if now is None or (now != file and (file or size != size_in(now)) and not checksum):
                    index.run("DELETE FROM cached_images WHERE image_id = ?", (image_id,))
                    dropped += 1
                    continue
                files.pop(image_id, None)
                if file is None:  # of a version that did not say, or Glance's
                    # A length that is none of its own is no reason to forget what is promised.
                    as_it_was = now if size == size_in(now) else f"{size}:0:0"
                    taken_up.append((as_it_was, image_id))
                if size != size_in(now):
                    index.run(tables.RESIZE, (size_in(now), image_id))
            index.run_many("UPDATE cachefs_images SET file = ? WHERE image_id = ?", taken_up)
            return self._adopt_all(index, files), dropped

    def _adopt_all(self, index: Index, files: dict[str, str]) -> int:
        """Record those of *files* that are there still; their number."""
        adopted = 0
        for image_id in sorted(files):  # In order, the indexes are written once, not all over.
            try:
                entry = self._found(image_id)
            except OSError as error:
                log.warning("image %r is left out of the cache: %s", image_id, error)
                continue
            if entry is not None:
                tables.insert(index, entry)
                adopted += 1
        return adopted

    def _found(self, image_id: str) -> Entry | None:
        """What is known of an image file by the file alone."""
        found = find_image(self._cache_dir, image_id)
        if found is None:
            return None
        return file_record.adopted(image_id, self._file_of(image_id), found)

    def _file_of(self, image_id: str) -> str:
        return f"{self._cache_dir}/{image_id}"

    def get(self, image_id: str) -> Entry | None:
        """As the contract says."""
        return self._asked(lambda index: tables.one(index, "WHERE image_id = ?", image_id))

    def by_inode(self, inode: int) -> Entry | None:
        """As the contract says."""
        return self._asked(lambda index: tables.one(index, "WHERE o.inode = ?", inode))

    def put(self, entry: Entry, path: Path) -> Entry:
        """As the contract says."""
        entry = self._record(replace(entry, file=file_id(path.lstat())))
        file_record.describe_at(str(path), entry)
        return entry

    def adopt(self, image_id: str) -> Entry | None:
        """As the contract says."""
        entry = self._found(image_id)
        return None if entry is None else self._record(entry)

    def _record(self, entry: Entry) -> Entry:
        def write(index: Index) -> Entry:
            with index.transaction():
                index.run("DELETE FROM cached_images WHERE image_id = ?", (entry.image_id,))
                tables.insert(index, entry)
                row = index.row(
                    "SELECT inode FROM cachefs_images WHERE image_id = ?", (entry.image_id,)
                )
            assert row is not None, "the insert trigger is missing"
            return replace(entry, inode=row[0])

        return self._asked(write)

    def identify(self, entry: Entry, file: str) -> None:
        """As the contract says."""
        sql = "UPDATE cachefs_images SET file = ? WHERE image_id = ? AND inode = ?"
        if self._asked(lambda index: index.run(sql, (file, entry.image_id, entry.inode))):
            self._describe(entry.image_id)

    def _describe(self, image_id: str) -> None:
        """Write on the image's file what its record says by now."""
        entry = self.get(image_id)
        if entry is not None:
            file_record.describe_at(self._file_of(image_id), entry)

    def remove(self, image_id: str) -> None:
        """As the contract says."""
        sql = "DELETE FROM cached_images WHERE image_id = ?"
        self._asked(lambda index: index.run(sql, (image_id,)))

    def hit(self, image_id: str, when: float, count: int = 1) -> None:
        """One UPDATE in SQLite's write-ahead log: it survives ``kill -9`` once this returns. The
        last few may be lost in a power cut, for nothing is fsynced."""
        if self._database.connections().is_full and not self.tidy():
            path = self._database.connections().path
            raise IndexBusyError(f"the log of index {path} is too long")
        # Locked, the index is good still, and a statistic can wait.
        self._asked(lambda index: index.run(tables.HIT, (count, when, image_id)), patient=True)

    def set_pinned(self, image_id: str, pinned: bool) -> bool:
        """As the contract says."""
        sql = "UPDATE cachefs_images SET pinned = ? WHERE image_id = ?"
        known = bool(self._asked(lambda index: index.run(sql, (int(pinned), image_id))))
        if known:
            self._describe(image_id)
        return known

    def totals(self) -> Totals:
        """As the contract says."""
        return self._asked(Index.totals)

    def lru(self) -> Iterator[Entry]:
        """One row is read at a step, so what is yielded is never older than the step."""
        position: tuple[Any, ...] = LRU_START
        while row := self._next(position):
            position = row[1:]
            entry = self.by_inode(row[2])
            if entry is not None:
                yield entry

    def pinned(self) -> Iterator[Entry]:
        """As the contract says."""
        yield from self._asked(
            lambda index: tables.many(index, "WHERE o.pinned = 1 ORDER BY o.image_id")
        )

    def entries(self) -> Iterator[Entry]:
        """As the contract says."""
        after = ""
        while page := self._page(after):
            yield from page
            after = page[-1].image_id

    def glance_records(self) -> list[GlanceRecord]:
        """As the contract says: Glance's own table, in one statement."""
        rows: list[Any] = self._asked(lambda index: index.rows(tables.GLANCE_RECORDS))
        return rows

    def entries_after(self, inode: int, limit: int) -> list[Entry]:
        """As the contract says."""
        return self._asked(lambda index: tables.entries_after(index, inode, limit))

    def tidy(self) -> bool:
        """As the contract says. By a connection of its own, which waits for no reader."""
        try:
            with closing(Index(str(self._database.connections().path), wait=0)) as index:
                return index.empty_log()
        except CacheFSError as error:  # what is wrong is seen to where a record is needed
            log.debug("cannot shorten the index's log: %s", error)
            return False

    def files(self) -> list[Path]:
        """As the contract says: the database, its log and its locks."""
        path = self._database.connections().path
        return [path, *place.side_files(path)]

    def disk_bytes(self) -> int:
        """As the contract says."""
        size = 0
        for each in self.files():
            with suppress(OSError):
                size += each.stat().st_size
        return size

    def _next(self, position: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return self._asked(lambda index: index.row(LRU_NEXT, position))

    def _page(self, after: str) -> list[Entry]:
        where = "WHERE o.image_id > ? ORDER BY o.image_id LIMIT ?"
        return self._asked(lambda index: tables.many(index, where, after, PAGE))
