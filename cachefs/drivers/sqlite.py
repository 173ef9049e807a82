"""The driver that keeps the index in ``cache.db``, in Glance's table and one of ours beside it.

Owns that database. Glance's table is exactly Glance's, and a real Glance may read and write it
while we do: triggers carry each of its inserts, hits and deletes over to our table, which holds
what Glance has no column for. The database is an index of the files: what it loses in a power cut
(``synchronous=NORMAL``), :meth:`SqliteDriver.reconcile` finds again in the directory.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from cachefs.drivers.base import Entry, GlanceRecord, Totals
from cachefs.drivers.files import find_image, scan_images
from cachefs.drivers.index import COUNT, LRU_NEXT, LRU_START, SCHEMA, Index
from cachefs.errors import CacheFSError, DriverError

GLANCE_TABLE = """
CREATE TABLE IF NOT EXISTS cached_images (
    image_id TEXT PRIMARY KEY,
    last_accessed REAL DEFAULT 0.0,
    last_modified REAL DEFAULT 0.0,
    size INTEGER DEFAULT 0,
    hits INTEGER DEFAULT 0,
    checksum TEXT
);
"""
"""As ``glance.image_cache.drivers.sqlite`` creates it."""

# last_accessed and size are copies of Glance's, for an index can stand on one table only.
# AUTOINCREMENT: an inode number is never given out twice, whatever was deleted.
OUR_TABLE = """
CREATE TABLE IF NOT EXISTS cachefs_images (
    inode INTEGER PRIMARY KEY AUTOINCREMENT,
    image_id TEXT UNIQUE NOT NULL,
    last_accessed REAL NOT NULL DEFAULT 0.0,
    size INTEGER NOT NULL DEFAULT 0,
    pinned INTEGER NOT NULL DEFAULT 0,
    fetched REAL,
    source TEXT,
    checksum TEXT,
    verified INTEGER NOT NULL DEFAULT 0
);
"""

# The insert deletes first, because an INSERT OR REPLACE into Glance's table fires no delete trigger
# (https://sqlite.org/lang_conflict.html, REPLACE, unless recursive_triggers is on).
FOLLOW_GLANCE = """
CREATE TRIGGER IF NOT EXISTS cachefs_follow_insert AFTER INSERT ON cached_images BEGIN
    DELETE FROM cachefs_images WHERE image_id = NEW.image_id;
    INSERT INTO cachefs_images(image_id, last_accessed, size)
        VALUES (NEW.image_id, coalesce(NEW.last_accessed, 0.0), coalesce(NEW.size, 0)); END;
CREATE TRIGGER IF NOT EXISTS cachefs_follow_delete AFTER DELETE ON cached_images BEGIN
    DELETE FROM cachefs_images WHERE image_id = OLD.image_id; END;
CREATE TRIGGER IF NOT EXISTS cachefs_follow_hit AFTER UPDATE OF last_accessed ON cached_images BEGIN
    UPDATE cachefs_images SET last_accessed = coalesce(NEW.last_accessed, 0.0)
        WHERE image_id = NEW.image_id; END;
CREATE TRIGGER IF NOT EXISTS cachefs_follow_size AFTER UPDATE OF size ON cached_images BEGIN
    UPDATE cachefs_images SET size = coalesce(NEW.size, 0) WHERE image_id = NEW.image_id; END;
"""

CATCH_UP = """
DELETE FROM cachefs_images WHERE image_id NOT IN (SELECT image_id FROM cached_images);
INSERT INTO cachefs_images(image_id, last_accessed, size)
    SELECT image_id, coalesce(last_accessed, 0.0), coalesce(size, 0) FROM cached_images
    WHERE image_id NOT IN (SELECT image_id FROM cachefs_images);
"""
"""Brings our table up to Glance's as it stood before there were triggers; linear, so done when our
table is new and in reconcile only. COUNT goes after it."""

SELECT = """
SELECT image_id, g.size, g.hits, g.last_accessed, g.last_modified, coalesce(o.checksum, g.checksum),
    o.pinned, o.fetched, o.source, o.verified, o.inode
FROM cachefs_images AS o JOIN cached_images AS g USING (image_id)
"""

GLANCE_RECORDS = """
SELECT image_id, size, hits, last_accessed, last_modified, checksum FROM cached_images
ORDER BY image_id
"""

BARE_MD5 = re.compile(r"[0-9a-f]{32}\Z")

WAL_BYTES = 16 * 2**20
"""Size of the write-ahead log at which SQLite copies it back (checkpoints). A hit writes 3 or 4
pages, so at SQLite's own 1000 pages every 300th would wait for two fsyncs; now every 4000th does,
or every 1000th in a database with pages of 4 KiB. No reader of ours outlasts a call, so nothing
keeps the log from starting over."""

PAGE = 500
"""Rows that a listing reads at a time."""


class SqliteDriver:
    """See the module, and :class:`cachefs.drivers.base.Driver` for the methods."""

    name: ClassVar[str] = "sqlite"

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._path = cache_dir / "cache.db"
        self._opened: Index | None = None

    def configure(self) -> None:
        """Open ``cache.db``, and create or upgrade it. Raises :class:`DriverError` where that
        fails; a file that was there is left as it is, and so is the empty one that SQLite may have
        made: another process may be using it by now."""
        index = Index(str(self._path))
        try:
            index.write_ahead(WAL_BYTES)
            ours = index.row("SELECT 1 FROM sqlite_master WHERE name = 'cachefs_images'")
            create = GLANCE_TABLE + OUR_TABLE + SCHEMA + FOLLOW_GLANCE
            index.script(create if ours else create + CATCH_UP + COUNT)
            index.row(SELECT + "LIMIT 1")  # A table of another shape is found out now.
        except CacheFSError:
            index.close()
            raise
        self._opened = index

    def close(self) -> None:
        """As the contract says."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def reconcile(self) -> tuple[int, int]:
        """As the contract says; a record whose size is not its file's is of another file, so it is
        dropped and the file adopted."""
        # The directory is read outside the transaction, so that other processes' hits need not wait
        # for it. What differs is looked at again inside: a Glance beside us takes no lock of ours.
        files = {image_id: found.st_size for image_id, found in scan_images(self._cache_dir)}
        adopted = dropped = 0
        with self._index.transaction():
            for statement in (CATCH_UP + COUNT).split(";"):
                self._index.run(statement)
            for image_id, size in self._index.rows("SELECT image_id, size FROM cachefs_images"):
                if files.get(image_id) == size:
                    del files[image_id]
                    continue
                found = find_image(self._cache_dir, image_id)
                if found is None or found.st_size != size:
                    self._index.run("DELETE FROM cached_images WHERE image_id = ?", (image_id,))
                    dropped += 1
                else:
                    files.pop(image_id, None)
            for image_id in sorted(files):  # In order, the indexes are written once, not all over.
                found = find_image(self._cache_dir, image_id)
                if found is not None:
                    self._insert(
                        Entry(
                            image_id,
                            found.st_size,
                            last_accessed=found.st_atime,
                            last_modified=found.st_mtime,
                        )
                    )
                    adopted += 1
        return adopted, dropped

    def get(self, image_id: str) -> Entry | None:
        """As the contract says."""
        return self._one("WHERE image_id = ?", image_id)

    def by_inode(self, inode: int) -> Entry | None:
        """As the contract says."""
        return self._one("WHERE o.inode = ?", inode)

    def put(self, entry: Entry, path: Path) -> Entry:  # noqa: ARG002 - xattr needs it
        """Record *entry*; *path* is not needed, this driver writes nothing on the file."""
        ours = None if BARE_MD5.match(entry.checksum or "") else entry.checksum
        with self._index.transaction():
            self._index.run("DELETE FROM cached_images WHERE image_id = ?", (entry.image_id,))
            self._insert(entry)
            self._index.run(
                "UPDATE cachefs_images SET pinned = ?, fetched = ?, source = ?, checksum = ?,"
                " verified = ? WHERE image_id = ?",
                (entry.pinned, entry.fetched, entry.source, ours, entry.verified, entry.image_id),
            )
            row = self._index.row(
                "SELECT inode FROM cachefs_images WHERE image_id = ?", (entry.image_id,)
            )
        assert row is not None, "the insert trigger is missing"
        return replace(entry, inode=row[0])

    def remove(self, image_id: str) -> None:
        """As the contract says."""
        self._index.run("DELETE FROM cached_images WHERE image_id = ?", (image_id,))

    def hit(self, image_id: str, when: float, count: int = 1) -> None:
        """One UPDATE in SQLite's write-ahead log: it survives ``kill -9`` once this returns. The
        last few may be lost in a power cut, for nothing is fsynced."""
        self._index.run(
            "UPDATE cached_images SET hits = hits + ?, last_accessed = ? WHERE image_id = ?",
            (count, when, image_id),
        )

    def set_pinned(self, image_id: str, pinned: bool) -> bool:
        """As the contract says."""
        return bool(
            self._index.run(
                "UPDATE cachefs_images SET pinned = ? WHERE image_id = ?", (int(pinned), image_id)
            )
        )

    def totals(self) -> Totals:
        """As the contract says."""
        return self._index.totals()

    def lru(self) -> Iterator[Entry]:
        """One row is read at a step, so what is yielded is never older than the step."""
        position: tuple[Any, ...] = LRU_START
        while row := self._index.row(LRU_NEXT, position):
            position = row[1:]
            entry = self.by_inode(row[2])
            if entry is not None:
                yield entry

    def pinned(self) -> Iterator[Entry]:
        """As the contract says."""
        yield from self._many("WHERE o.pinned = 1 ORDER BY o.image_id")

    def entries(self) -> Iterator[Entry]:
        """As the contract says."""
        after = ""
        while page := self._many("WHERE o.image_id > ? ORDER BY o.image_id LIMIT ?", after, PAGE):
            yield from page
            after = page[-1].image_id

    def glance_records(self) -> list[GlanceRecord]:
        """As the contract says: Glance's own table, in one statement."""
        rows: list[Any] = self._index.rows(GLANCE_RECORDS)
        return rows

    def entries_after(self, inode: int, limit: int) -> list[Entry]:
        """As the contract says."""
        return self._many("WHERE o.inode > ? ORDER BY o.inode LIMIT ?", inode, limit)

    @property
    def _index(self) -> Index:
        if self._opened is None:
            raise DriverError(f"the index {self._path} is not open")
        return self._opened

    def _insert(self, entry: Entry) -> None:
        """Write Glance's row; its trigger writes ours, with a new inode number."""
        self._index.run(
            "INSERT INTO cached_images"
            "(image_id, last_accessed, last_modified, size, hits, checksum)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                entry.image_id,
                entry.last_accessed,
                entry.last_modified,
                entry.size,
                entry.hits,
                entry.checksum if BARE_MD5.match(entry.checksum or "") else None,
            ),
        )

    def _one(self, where: str, *values: object) -> Entry | None:
        row = self._index.row(SELECT + where, values)
        return None if row is None else _entry(row)

    def _many(self, where: str, *values: object) -> list[Entry]:
        return [_entry(row) for row in self._index.rows(SELECT + where, values)]


def _entry(row: tuple[Any, ...]) -> Entry:
    """The entry in a row of :data:`SELECT`, whose columns are in the order of the fields."""
    entry = Entry(*row)
    return replace(entry, pinned=bool(entry.pinned), verified=bool(entry.verified))
