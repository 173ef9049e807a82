"""The driver that keeps the index in ``cache.db``, in Glance's table and one of ours beside it.

Owns that database; where it stands is :mod:`cachefs.drivers.place`'s. Glance's table is exactly
Glance's, and a real Glance may read and write it while we do: triggers carry each of its inserts,
hits and deletes over to our table, which holds what Glance has no column for. The database is an
index of the files: what it loses in a power cut (``synchronous=NORMAL``),
:meth:`SqliteDriver.reconcile` finds again in the directory, with what
:mod:`cachefs.drivers.file_record` has written on the files. One that cannot be used is set aside,
whenever that is found out, and made anew of the files; where the directory can hold none, in a
temporary place.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from cachefs.drivers import file_record, place
from cachefs.drivers.base import Entry, GlanceRecord, Totals, file_id, size_in
from cachefs.drivers.files import find_image, scan_images
from cachefs.drivers.index import COUNT, LRU_NEXT, LRU_START, SCHEMA, Index
from cachefs.drivers.private import private_dir
from cachefs.errors import (
    CacheFSError,
    DriverError,
    IndexBusyError,
    IndexLostError,
    NoRoomError,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

VERSION = 1
"""``user_version`` of our part of the database. A later one may mean what we know nothing of."""

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
    verified INTEGER NOT NULL DEFAULT 0,
    file TEXT
);
"""

ADD_FILE = "ALTER TABLE cachefs_images ADD COLUMN file TEXT;"
"""For a table that was made before there was the column."""

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

# As in Glance's table, or in ours: a damaged page, or another program, may have left anything.
DROP_NONSENSE = """
DELETE FROM cached_images WHERE image_id IN (
    SELECT image_id FROM cached_images AS g JOIN cachefs_images AS o USING (image_id)
    WHERE typeof(g.size) <> 'integer' OR g.size < 0 OR typeof(g.hits) <> 'integer' OR g.hits < 0
        OR typeof(g.last_accessed) NOT IN ('real', 'integer')
        OR g.last_accessed NOT BETWEEN 0 AND 1e11
        OR typeof(g.last_modified) NOT IN ('real', 'integer')
        OR g.last_modified NOT BETWEEN 0 AND 1e11
        OR typeof(g.checksum) NOT IN ('text', 'null') OR typeof(o.checksum) NOT IN ('text', 'null')
        OR typeof(o.source) NOT IN ('text', 'null') OR typeof(o.file) NOT IN ('text', 'null')
        OR typeof(o.fetched) NOT IN ('real', 'integer', 'null'));
DELETE FROM cached_images WHERE typeof(image_id) <> 'text';
"""
"""Drops the records that make no sense; their files are adopted anew."""

SELECT = """
SELECT image_id, g.size, g.hits, g.last_accessed, g.last_modified, coalesce(o.checksum, g.checksum),
    o.pinned, o.fetched, o.source, o.verified, o.inode, o.file
FROM cachefs_images AS o JOIN cached_images AS g USING (image_id)
"""

RECORDED = """
SELECT image_id, o.size, o.file, coalesce(o.checksum, g.checksum)
FROM cachefs_images AS o JOIN cached_images AS g USING (image_id)
"""
RESIZE = "UPDATE cached_images SET size = ? WHERE image_id = ?"
HIT = "UPDATE cached_images SET hits = hits + ?, last_accessed = ? WHERE image_id = ?"

GLANCE_RECORDS = """
SELECT image_id, size, hits, last_accessed, last_modified, checksum FROM cached_images
ORDER BY image_id
"""

DESCRIBED = "CREATE TABLE IF NOT EXISTS cachefs_described (since INTEGER)"
IS_DESCRIBED = "SELECT name FROM sqlite_master WHERE name = 'cachefs_described'"
"""There is this table once the files say what the records of before that day say."""

BARE_MD5 = re.compile(r"[0-9a-f]{32}\Z")

WAL_BYTES = 16 * 2**20
"""Size of the write-ahead log at which a thread's write copies it back (a checkpoint), and at which
an event loop's hits are refused. A hit writes 3 or 4 pages, so at SQLite's own 1000 pages every
300th would wait for two fsyncs; now every 4000th does, or every 1000th in a database with pages of
4 KiB. No reader of ours outlasts a call; one of another program may, and then nothing is written
for a while but what few images are published."""

UNTIDY_BYTES = 4 * 2**20
"""Size of the log at which it is to be copied back beside an event loop's work."""

RENEWAL = 5.0
"""Seconds in which a database is made anew but once: where that does not help, none is put where
the last one failed."""

ANEW = "%s: it is %s, and made anew from the files; %s may be lost"
"""The one warning."""

LOST = {
    True: "hits",
    False: "hits, pins and checksums (the filesystem has no user extended attributes)",
}
"""What is lost at most, by whether the files themselves can say the rest."""

PAGE = 500
"""Rows that a listing reads at a time."""


class Connections:
    """The open database *path*: *main* is for threads and waits, *quick* for an event loop and
    never does. Raises as :class:`~cachefs.drivers.index.Index`, where the database is none of ours,
    too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log_path = f"{path}-wal"
        self.main = Index(str(path))
        try:
            self._make()
            self.quick = Index(str(path), wait=0)
            self.quick.leave_log()
            found = path.stat()
        except BaseException:
            self.main.close()
            raise
        self._identity = found.st_dev, found.st_ino

    def close(self) -> None:
        """Close both."""
        self.quick.close()
        self.main.close()

    def is_there(self) -> bool:
        """Whether the database has its name still: another process may have set it aside."""
        try:
            found = os.stat(self.path)  # noqa: PTH116 - half of what Path.stat costs, at each call
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def log_bytes(self) -> int:
        """The size of the write-ahead log."""
        try:
            return os.stat(self.log_path).st_size  # noqa: PTH116 - as above
        except FileNotFoundError:
            return 0

    def _make(self) -> None:
        """Make the tables that are missing, and try whether records can be written and read."""
        index = self.main
        index.write_ahead(WAL_BYTES)
        [(version,)] = index.rows("PRAGMA user_version")
        if version > VERSION:
            raise IndexLostError(f"index {self.path}: it is of a newer version ({version})")
        with index.transaction():
            columns = {row[1] for row in index.rows("PRAGMA table_info(cachefs_images)")}
            if columns and "file" not in columns:
                index.run(ADD_FILE)
        create = GLANCE_TABLE + OUR_TABLE + SCHEMA + FOLLOW_GLANCE
        create += f"PRAGMA user_version = {VERSION};"
        index.script(create if columns else create + CATCH_UP + COUNT)
        self._try_record()

    def _try_record(self) -> None:
        """A table of another shape is found out now. Nothing is written in the end."""
        probe = Entry("\x01", 1, file="1:1:1")  # no image's ID
        with suppress(_UndoneError), self.main.transaction():
            insert(self.main, probe)
            if self.main.row(SELECT + "WHERE image_id = ?", (probe.image_id,)) is None:
                raise IndexLostError(f"index {self.path}: its triggers do not work")
            raise _UndoneError


class _UndoneError(Exception):
    """Rolls a transaction back."""


class SqliteQuick:
    """See :class:`cachefs.drivers.base.QuickDriver`. *connections* gives the open database."""

    def __init__(self, connections: Callable[[], Connections]) -> None:
        self._connections = connections

    def get(self, image_id: str) -> Entry | None:
        """As the contract says."""
        return self._one("WHERE image_id = ?", image_id)

    def by_inode(self, inode: int) -> Entry | None:
        """As the contract says."""
        return self._one("WHERE o.inode = ?", inode)

    def entries_after(self, inode: int, limit: int) -> list[Entry]:
        """As the contract says."""
        return self._asked(lambda index: entries_after(index, inode, limit))

    def totals(self) -> Totals:
        """As the contract says."""
        return self._asked(Index.totals)

    def hit(self, image_id: str, when: float, count: int = 1) -> None:
        """As the contract says."""
        if self._connections().log_bytes() >= WAL_BYTES:
            raise IndexBusyError("the index's log is too long")
        self._asked(lambda index: index.run(HIT, (count, when, image_id)))

    @property
    def is_untidy(self) -> bool:
        """As the contract says."""
        return self._connections().log_bytes() >= UNTIDY_BYTES

    def _one(self, where: str, value: object) -> Entry | None:
        return self._asked(lambda index: one(index, where, value))

    def _asked(self, work: Callable[[Index], T]) -> T:
        try:
            return work(self._connections().quick)
        except IndexLostError as error:  # the driver itself makes a new one, which takes a while
            raise IndexBusyError(str(error)) from error


class SqliteDriver:
    """See the module, and :class:`cachefs.drivers.base.Driver` for the methods."""

    name: ClassVar[str] = "sqlite"

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._path = cache_dir / place.LINK
        self._opened: Connections | None = None
        self._renewing = threading.RLock()
        self._renewed = float("-inf")
        self._scratch: Path | None = None
        self.quick = SqliteQuick(self._connections)

    def configure(self) -> None:
        """Open the database, and create or upgrade it; one that cannot be used is set aside, and a
        new one made. Raises :class:`DriverError` where there is no such directory."""
        if not self._cache_dir.is_dir():
            raise DriverError(f"{self._cache_dir} is no directory")
        self._opened = self._open()

    def close(self) -> None:
        """As the contract says."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
        if self._scratch is not None:
            place.remove_scratch(self._scratch)
            self._scratch = None

    def reconcile(self) -> tuple[int, int]:
        """As the contract says."""
        # The directory is read outside the transaction, so that other processes' hits need not wait
        # for it. What differs is looked at again inside: a Glance beside us takes no lock of ours.
        files = {image_id: file_id(found) for image_id, found in scan_images(self._cache_dir)}
        try:
            numbers = self._asked(lambda index: self._bring_together(index, dict(files)))
        except NoRoomError as error:
            with self._renewing:
                opened = self._connections()
                if opened.path == self._scratch:
                    raise
                self._opened = self._make_temporary(error)
                opened.close()
            return self._asked(lambda index: self._bring_together(index, dict(files)))
        self._describe_all()
        return numbers

    def _describe_all(self) -> None:
        """Write on the files what a version of ours has recorded that did not do so; once."""
        if self._asked(lambda index: index.row(IS_DESCRIBED)) is not None:
            return
        if file_record.is_possible(str(self._cache_dir)):
            for entry in self.entries():
                file_record.describe_at(self._file_of(entry.image_id), entry)
            with suppress(NoRoomError):  # then again at the next start
                self._asked(lambda index: index.run(DESCRIBED))

    def _bring_together(self, index: Index, files: dict[str, str]) -> tuple[int, int]:
        dropped = 0
        taken_up: list[tuple[str, str]] = []
        with index.transaction():
            for statement in (DROP_NONSENSE + CATCH_UP + COUNT).split(";"):
                index.run(statement)
            for image_id, size, file, checksum in index.rows(RECORDED):
                now = files.get(image_id)
                if now is None or now != file or size != size_in(now):
                    found = find_image(self._cache_dir, image_id)
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
                    index.run(RESIZE, (size_in(now), image_id))
            index.run_many("UPDATE cachefs_images SET file = ? WHERE image_id = ?", taken_up)
            adopted = 0
            for image_id in sorted(files):  # In order, the indexes are written once, not all over.
                entry = self._found(image_id)
                if entry is not None:
                    insert(index, entry)
                    adopted += 1
        return adopted, dropped

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
        return self._asked(lambda index: one(index, "WHERE image_id = ?", image_id))

    def by_inode(self, inode: int) -> Entry | None:
        """As the contract says."""
        return self._asked(lambda index: one(index, "WHERE o.inode = ?", inode))

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
                insert(index, entry)
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
        if self._connections().log_bytes() >= WAL_BYTES and not self.tidy():
            raise IndexBusyError(f"the log of index {self._connections().path} is too long")
        # Locked, the index is good still, and a statistic can wait.
        self._asked(lambda index: index.run(HIT, (count, when, image_id)), patient=True)

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
        yield from self._asked(lambda index: many(index, "WHERE o.pinned = 1 ORDER BY o.image_id"))

    def entries(self) -> Iterator[Entry]:
        """As the contract says."""
        after = ""
        while page := self._page(after):
            yield from page
            after = page[-1].image_id

    def glance_records(self) -> list[GlanceRecord]:
        """As the contract says: Glance's own table, in one statement."""
        rows: list[Any] = self._asked(lambda index: index.rows(GLANCE_RECORDS))
        return rows

    def entries_after(self, inode: int, limit: int) -> list[Entry]:
        """As the contract says."""
        return self._asked(lambda index: entries_after(index, inode, limit))

    def tidy(self) -> bool:
        """As the contract says. By a connection of its own, which waits for no reader."""
        try:
            with closing(Index(str(self._connections().path), wait=0)) as index:
                return index.empty_log()
        except CacheFSError as error:  # what is wrong is seen to where a record is needed
            log.debug("cannot shorten the index's log: %s", error)
            return False

    def files(self) -> list[Path]:
        """As the contract says: the database, its log and its locks."""
        path = self._connections().path
        return [path, *place.side_files(path)]

    def disk_bytes(self) -> int:
        """As the contract says."""
        size = 0
        for each in self.files():
            with suppress(OSError):
                size += each.stat().st_size
        return size

    # The open database, and what is done where it cannot be used

    def _connections(self) -> Connections:
        if self._opened is None:
            raise DriverError(f"the index of {self._cache_dir} is not open")
        return self._opened

    def _asked(self, work: Callable[[Index], T], *, patient: bool = False) -> T:
        """What *work* gives, or gives in a new database, where this one cannot be used. With
        *patient*, one that is locked is not one of those."""
        opened = self._connections()
        if not opened.is_there():
            self._renew(opened, IndexLostError(f"index {opened.path}: it was taken away"))
            opened = self._connections()
        try:
            return work(opened.main)
        except DriverError as error:
            if self._opened is opened:
                lost = isinstance(error, IndexLostError)
                if not lost and (patient or not isinstance(error, IndexBusyError)):
                    raise
                self._renew(opened, error)
        return work(self._connections().main)

    def _renew(self, opened: Connections, why: DriverError) -> None:
        """Open what another process has made in the meantime, or make a new database, unless
        another thread has done so."""
        with self._renewing:
            if self._opened is not opened:
                return
            if opened.path == self._scratch:
                raise why
            if opened.is_there() or not opened.path.exists():
                self._opened = self._make_anew(opened.path, why)
            else:
                self._opened = self._open()
            opened.close()
            self.reconcile()

    def _find(self) -> Path:
        """The database to be opened. Raises as :func:`cachefs.drivers.place.find`."""
        return place.find(self._cache_dir)

    def _open(self) -> Connections:
        path = self._path
        try:
            path = self._find()
            place.prepare(path, self._cache_dir)
            return Connections(path)
        except (CacheFSError, OSError) as error:
            return self._make_anew(path, error)

    def _make_anew(self, path: Path, why: Exception) -> Connections:
        """An empty database, once the one at *path* is set aside; where that cannot be done, in a
        temporary place, for as long as the cache is open."""
        again, self._renewed = time.monotonic() - self._renewed < RENEWAL, time.monotonic()
        try:
            if again:
                raise DriverError("the last one has just been made")
            connections, aside = self._replace(path)
            done = f"set aside as {aside}" if aside is not None else "gone"
        except (CacheFSError, OSError) as trouble:
            log.debug("no index can be made in %s: %s", self._cache_dir, trouble)
            return self._make_temporary(why)
        self._warn(why, done)
        return connections

    def _make_temporary(self, why: Exception) -> Connections:
        self._scratch = self._scratch or place.scratch()
        place.prepare(self._scratch, self._scratch.parent)
        connections = Connections(self._scratch)
        self._warn(why, f"left as it is, until this process ends {self._scratch} is used")
        return connections

    def _warn(self, why: Exception, done: str) -> None:
        log.warning(ANEW, why, done, LOST[file_record.is_possible(str(self._cache_dir))])

    def _replace(self, path: Path) -> tuple[Connections, Path | None]:
        """Made before the old one is touched: a full disk is no reason to lose an index."""
        private_dir(self._cache_dir)
        own = self._path
        new = own.with_name(f"{own.name}.{os.getpid()}.{threading.get_ident()}")
        aside = None
        try:
            place.prepare(new, self._cache_dir)
            Connections(new).close()
            for old in {path, own}:
                if os.path.lexists(old):
                    aside = place.set_aside(self._cache_dir, old)
                else:
                    place.remove_side_files(old)
            new.rename(own)
        finally:
            new.unlink(missing_ok=True)
            place.remove_side_files(new)
        return Connections(self._find()), aside

    def _next(self, position: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return self._asked(lambda index: index.row(LRU_NEXT, position))

    def _page(self, after: str) -> list[Entry]:
        where = "WHERE o.image_id > ? ORDER BY o.image_id LIMIT ?"
        return self._asked(lambda index: many(index, where, after, PAGE))


def insert(index: Index, entry: Entry) -> None:
    """Write Glance's row, whose trigger writes ours, with a new inode number; and the rest of
    ours. Inside a transaction."""
    is_md5 = BARE_MD5.match(entry.checksum or "")
    index.run(
        "INSERT INTO cached_images"
        "(image_id, last_accessed, last_modified, size, hits, checksum)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (
            entry.image_id,
            entry.last_accessed,
            entry.last_modified,
            entry.size,
            entry.hits,
            entry.checksum if is_md5 else None,
        ),
    )
    index.run(
        "UPDATE cachefs_images SET pinned = ?, fetched = ?, source = ?, checksum = ?, verified = ?,"
        " file = ? WHERE image_id = ?",
        (
            entry.pinned,
            entry.fetched,
            entry.source,
            None if is_md5 else entry.checksum,
            entry.verified,
            entry.file,
            entry.image_id,
        ),
    )


def one(index: Index, where: str, value: object) -> Entry | None:
    """The entry that *where* finds."""
    row = index.row(SELECT + where, (value,))
    return None if row is None else _entry(row)


def many(index: Index, where: str, *values: object) -> list[Entry]:
    """The entries that *where* finds."""
    return [_entry(row) for row in index.rows(SELECT + where, values)]


def entries_after(index: Index, inode: int, limit: int) -> list[Entry]:
    """As the contract of a driver says."""
    return many(index, "WHERE o.inode > ? ORDER BY o.inode LIMIT ?", inode, limit)


def _entry(row: tuple[Any, ...]) -> Entry:
    """The entry in a row of :data:`SELECT`, whose columns are in the order of the fields."""
    entry = Entry(*row)
    return replace(entry, pinned=bool(entry.pinned), verified=bool(entry.verified))
