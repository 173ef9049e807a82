"""The table that answers a driver's questions: by inode, by ID, least recently used, totals.

Owns the SQL that both drivers share, a connection with its lock, and the translation of SQLite's
errors: what another connection locks is IndexBusyError, what cannot be used is IndexLostError.
Knows neither Glance's table nor files: the sqlite driver keeps this table on disk beside Glance's,
the xattr driver in memory as a view of the files.

INVARIANT: ``cachefs_totals`` is the count and the sum of ``cachefs_images``. Triggers keep it, so
that it holds whichever process writes, a real Glance through its own connection too.
"""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cachefs.drivers.base import Totals
from cachefs.errors import (
    CacheFSError,
    DriverError,
    IndexBusyError,
    IndexLostError,
    NoRoomError,
)

PAGE_BYTES = 1024
"""Page size of a database that we create. What a hit costs is mostly the whole pages that it puts
into the write-ahead log: of 1 KiB, about half of what SQLite's own 4 KiB cost."""

BUSY_TIMEOUT = 5.0
"""Seconds to wait for another process's transaction; ours take microseconds."""

SCHEMA = """
CREATE INDEX IF NOT EXISTS cachefs_lru ON cachefs_images(last_accessed, inode) WHERE pinned = 0;
CREATE INDEX IF NOT EXISTS cachefs_pinned ON cachefs_images(image_id) WHERE pinned = 1;
CREATE TABLE IF NOT EXISTS cachefs_totals (
    one INTEGER PRIMARY KEY CHECK (one = 1), images INTEGER NOT NULL, size INTEGER NOT NULL);
INSERT OR IGNORE INTO cachefs_totals VALUES (1, 0, 0);
CREATE TRIGGER IF NOT EXISTS cachefs_count_insert AFTER INSERT ON cachefs_images BEGIN
    UPDATE cachefs_totals SET images = images + 1, size = size + NEW.size; END;
CREATE TRIGGER IF NOT EXISTS cachefs_count_delete AFTER DELETE ON cachefs_images BEGIN
    UPDATE cachefs_totals SET images = images - 1, size = size - OLD.size; END;
CREATE TRIGGER IF NOT EXISTS cachefs_count_update AFTER UPDATE OF size ON cachefs_images BEGIN
    UPDATE cachefs_totals SET size = size + NEW.size - OLD.size; END;
"""
"""What stands on a table ``cachefs_images`` with at least the columns inode, image_id,
last_accessed, size and pinned. The LRU index leaves out pinned images: however many there are, none
is stepped over when a victim is looked for."""

COUNT = """
UPDATE cachefs_totals SET images = (SELECT count(*) FROM cachefs_images),
    size = (SELECT coalesce(sum(size), 0) FROM cachefs_images);
"""
"""Makes the totals anew, for rows that were written while there were no triggers; linear."""

LRU_NEXT = """
SELECT image_id, last_accessed, inode FROM cachefs_images
WHERE pinned = 0 AND (last_accessed, inode) > (?, ?) ORDER BY last_accessed, inode LIMIT 1
"""
LRU_START = (float("-inf"), 0)
"""The position before every entry; after each, its (last_accessed, inode)."""


SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What the sqlite3 module raises. SQLite's messages quote the database: where that is damaged, they
cannot be decoded, and the module says just so."""

_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_LOST = frozenset(
    {
        sqlite3.SQLITE_ERROR,  # no such table, or column
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_SCHEMA,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_CONSTRAINT,  # we give no row that breaks one: an index and its table differ
        sqlite3.SQLITE_MISMATCH,
    }
)
"""Primary result codes (https://sqlite.org/rescode.html) of what another connection locks, and of
what cannot be used as it is."""


def is_undecodable(error: Exception) -> bool:
    """Whether the sqlite3 module has failed to decode a text of the database: a damaged one."""
    undecodable = isinstance(error, sqlite3.OperationalError) and str(error).startswith(
        "Could not decode"
    )
    return undecodable or isinstance(error, UnicodeDecodeError)


def one_line(said: object) -> str:
    """What SQLite says, which may quote a schema, on one line."""
    return " ".join(str(said).split())


class Index:
    """One SQLite connection that threads share under a lock, in autocommit mode. It waits for
    *wait* seconds (:data:`BUSY_TIMEOUT`) for other connections' locks; with 0, not for another
    thread either: then what is locked raises IndexBusyError at once.

    One connection for all threads, because its work is writing, which SQLite serialises anyway.
    Everything is fetched at once, never left in a cursor: an open cursor would keep SQLite's log
    from being checkpointed, and the log would grow.
    """

    def __init__(self, path: str, *, wait: float | None = None) -> None:
        self.lock = threading.RLock()
        self._path = path
        wait = BUSY_TIMEOUT if wait is None else wait
        self._waits = wait > 0
        with self._translated():
            self._connection = sqlite3.connect(
                path, timeout=wait, isolation_level=None, check_same_thread=False
            )

    def close(self) -> None:
        """Close the connection."""
        with self.lock, self._translated():
            self._connection.close()

    def write_ahead(self, log_bytes: int) -> None:
        """Keep a write-ahead log of about *log_bytes*, synced when it is copied back only. A
        database that is still empty gets pages of :data:`PAGE_BYTES`; any other keeps its own."""
        deadline = time.monotonic() + BUSY_TIMEOUT
        with self.lock, self._translated():
            # Before WAL, which writes the first page; after that SQLite takes no notice of it.
            self._connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
            while True:
                try:
                    self._connection.execute("PRAGMA journal_mode=WAL")
                    break
                except sqlite3.OperationalError as error:
                    busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
                    if not busy or time.monotonic() > deadline:
                        raise
                # Here alone SQLite does not wait for a writer; to become one waits for it.
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.execute("COMMIT")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            [page_bytes] = self._connection.execute("PRAGMA page_size").fetchone()
            self._connection.execute(f"PRAGMA wal_autocheckpoint={log_bytes // page_bytes}")
            self._connection.execute(f"PRAGMA journal_size_limit={log_bytes}")

    def leave_log(self) -> None:
        """Write into a log that :meth:`write_ahead` has made, and leave it to others to copy it
        back, which waits for the disk."""
        with self.lock, self._translated():
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute("PRAGMA wal_autocheckpoint=0")

    def empty_log(self) -> bool:
        """Copy all of the log back and cut it to nothing; False where a reader or a writer keeps it
        from that."""
        row = self.row("PRAGMA wal_checkpoint(TRUNCATE)")
        return row is not None and row[0] == 0

    def rows(self, sql: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows that *sql* gives."""
        self._acquire()
        try:
            return self._connection.execute(sql, tuple(values)).fetchall()
        except SQLITE_ERRORS as error:
            raise self._translate(error) from error
        finally:
            self.lock.release()

    def row(self, sql: str, values: Iterable[Any] = ()) -> tuple[Any, ...] | None:
        """The first row that *sql* gives, or None."""
        rows = self.rows(sql, values)
        return rows[0] if rows else None

    def run(self, sql: str, values: Iterable[Any] = ()) -> int:
        """Execute *sql* and return how many rows it changed."""
        self._acquire()
        try:
            return self._connection.execute(sql, tuple(values)).rowcount
        except SQLITE_ERRORS as error:
            raise self._translate(error) from error
        finally:
            self.lock.release()

    def fill(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Execute *sql* with each of *rows*, in one transaction."""
        with self.transaction():
            self.run_many(sql, rows)

    def run_many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Execute *sql* with each of *rows*."""
        with self.lock, self._translated():
            self._connection.executemany(sql, rows)

    def script(self, sql: str) -> None:
        """Execute the statements of *sql* in one transaction."""
        with self.lock, self._translated():
            try:
                self._connection.executescript(f"BEGIN IMMEDIATE;{sql};COMMIT")
            except SQLITE_ERRORS:
                self._roll_back()
                raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside happens, or nothing. The write lock is taken at once: taken half way,
        it can fail without SQLite waiting for it."""
        with self.lock:
            self.run("BEGIN IMMEDIATE")
            try:
                yield
                self.run("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def totals(self) -> Totals:
        """What the triggers counted."""
        row = self.row("SELECT images, size FROM cachefs_totals")
        return Totals(*row) if row else Totals(0, 0)

    def _acquire(self) -> None:
        if not self.lock.acquire(blocking=self._waits):
            raise IndexBusyError(f"index {self._path}: another thread is at it")

    def _roll_back(self) -> None:
        # The error that brought us here is the one to tell; SQLite may have rolled back already.
        with suppress(*SQLITE_ERRORS):
            self._connection.rollback()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLITE_ERRORS as error:
            raise self._translate(error) from error

    def _translate(self, error: Exception) -> CacheFSError:
        if is_undecodable(error):
            return IndexLostError(f"index {self._path}: it has text that is none")
        code = getattr(error, "sqlite_errorcode", None)  # the sqlite3 module's own errors have none
        primary = None if code is None else code & 0xFF
        if primary == sqlite3.SQLITE_FULL:
            return NoRoomError(f"no room for the index {self._path}")
        kind = DriverError
        if primary in _BUSY:
            kind = IndexBusyError
        elif primary in _LOST:
            kind = IndexLostError
        return kind(f"index {self._path}: {one_line(error)}")
