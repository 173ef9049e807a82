"""The two connections to one open database of the sqlite driver, and its write-ahead log's bounds.

Owns opening a database: that its tables are there and can be written, and whether it still has its
name. What is done where it cannot be used is :mod:`cachefs.drivers.database`'s.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

from cachefs.drivers import tables
from cachefs.drivers.base import Entry
from cachefs.drivers.index import COUNT, SCHEMA, Index, one_line
from cachefs.errors import IndexLostError

WAL_BYTES = 16 * 2**20
"""Size of the write-ahead log at which a thread's write copies it back (a checkpoint), and at which
an event loop's hits are refused. A hit writes 3 or 4 pages, so at SQLite's own 1000 pages every
300th would wait for two fsyncs; now every 4000th does, or every 1000th in a database with pages of
4 KiB. No reader of ours outlasts a call; one of another program may, and then nothing is written
for a while but what few images are published."""

UNTIDY_BYTES = 4 * 2**20
"""Size of the log at which it is to be copied back beside an event loop's work."""


class Connections:
    """The open database *path*: *main* is for threads and waits, *quick* for an event loop and
    never does. Raises as :class:`~cachefs.drivers.index.Index`, where the database is none of ours,
    too; IndexLostError where another process has put another one there meanwhile.

    INVARIANT: both have the file open that had the name at first and has it at last. SQLite finds
    the log by name: two files that have one log would be written each with the other's pages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log_path = f"{path}-wal"
        found = path.stat()
        self._identity = found.st_dev, found.st_ino
        self.main = Index(str(path))
        try:
            self._make()
            self.quick = Index(str(path), wait=0)
            try:
                self.quick.leave_log()
                if not self.is_there():
                    raise IndexLostError(f"index {path}: another process has replaced it")
            except BaseException:
                self.quick.close()
                raise
        except BaseException:
            self.main.close()
            raise

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

    @property
    def is_full(self) -> bool:
        """Whether the log is too long to write more hits."""
        return self.log_bytes() >= WAL_BYTES

    @property
    def is_untidy(self) -> bool:
        """Whether the log is to be copied back."""
        return self.log_bytes() >= UNTIDY_BYTES

    def _make(self) -> None:
        """Make the tables that are missing, and try whether records can be written and read."""
        index = self.main
        index.write_ahead(WAL_BYTES)
        [(version,)] = index.rows("PRAGMA user_version")
        if version > tables.VERSION:
            raise IndexLostError(f"index {self.path}: it is of a newer version ({version})")
        [(found,)] = index.rows("PRAGMA integrity_check(1)")  # 0.1 s for 100,000 images
        if found != "ok":
            raise IndexLostError(f"index {self.path}: it is damaged ({one_line(found)})")
        with index.transaction():
            columns = {row[1] for row in index.rows("PRAGMA table_info(cachefs_images)")}
            for column in tables.ADDED.keys() - columns if columns else ():
                index.run(tables.ADDED[column])
        if not columns:
            index.script(tables.OUR_TABLE)
            # INVARIANT: no inode number is given out twice in the life of a mount, which may be
            # longer than an index's: numbers that an earlier one gave are below the microseconds
            # since the epoch.
            index.run(tables.NUMBERS_ABOVE, (time.time_ns() // 1000,))
        create = tables.GLANCE_TABLE + tables.OUR_TABLE + SCHEMA + tables.FOLLOW_GLANCE
        create += f"PRAGMA user_version = {tables.VERSION};"
        index.script(create if columns else create + tables.CATCH_UP + COUNT)
        self._try_record()

    def _try_record(self) -> None:
        """A table of another shape is found out now. Nothing is written in the end."""
        probe = Entry("\x01", 1, file="1:1:1")  # no image's ID
        with suppress(_UndoneError), self.main.transaction():
            tables.insert(self.main, probe)
            if self.main.row(tables.SELECT + "WHERE image_id = ?", (probe.image_id,)) is None:
                raise IndexLostError(f"index {self.path}: its triggers do not work")
            raise _UndoneError


class _UndoneError(Exception):
    """Rolls a transaction back."""
