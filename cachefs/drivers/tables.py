"""Glance's table and ours: their SQL, and what a row says as an entry.

Owns the shape of ``cache.db``. Glance's table is exactly Glance's; ours holds what Glance has no
column for, and triggers carry each of Glance's inserts, hits and deletes over to it. What stands on
our table for both drivers is :mod:`cachefs.drivers.index`'s. Knows neither files nor connections.
"""

import re
from dataclasses import replace
from typing import Any

from cachefs.drivers.base import Entry
from cachefs.drivers.index import Index

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
    file TEXT,
    private INTEGER NOT NULL DEFAULT 0
);
"""

NUMBERS_ABOVE = """
INSERT INTO sqlite_sequence(name, seq) SELECT 'cachefs_images', ?
WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'cachefs_images')
"""
"""Has a new table's inode numbers begin above the given one."""

ADDED = {
    "file": "ALTER TABLE cachefs_images ADD COLUMN file TEXT;",
    "private": "ALTER TABLE cachefs_images ADD COLUMN private INTEGER NOT NULL DEFAULT 0;",
}
"""By the name of a column, for a table that was made before there was one."""

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
    o.pinned, o.fetched, o.source, o.verified, o.inode, o.file, o.private
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
        " file = ?, private = ? WHERE image_id = ?",
        (
            entry.pinned,
            entry.fetched,
            entry.source,
            None if is_md5 else entry.checksum,
            entry.verified,
            entry.file,
            entry.private,
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
    return replace(
        entry,
        pinned=bool(entry.pinned),
        verified=bool(entry.verified),
        private=bool(entry.private),
    )
