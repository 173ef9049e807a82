"""Inode numbers of the xattr driver, and the lock over processes that they share with hits.

Owns ``.cachefs/inodes``: the last number given, and the lock. Knows nothing of images.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cachefs.drivers import attributes
from cachefs.errors import DriverError, IndexBusyError


class Numbers:
    """See the module. *lock* is the driver's over threads, *path* the file; *clock_ns* gives
    nanoseconds since the epoch."""

    def __init__(self, path: Path, lock: threading.RLock, clock_ns: Callable[[], int]) -> None:
        self._path = path
        self._lock = lock
        self._clock_ns = clock_ns
        self._fd = -1
        self._depth = 0
        self.impatient = False
        """While an event loop holds the lock over threads: then no other process is waited for."""

    def open(self) -> None:
        """Open the file, made where it is missing. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o600)

    def close(self) -> None:
        """Close it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def files(self) -> list[Path]:
        """As the contract of a driver says."""
        return [self._path]

    def disk_bytes(self) -> int:
        """As the contract of a driver says."""
        try:
            return os.fstat(self._fd).st_size
        except OSError as error:  # closed
            index = self._path.parent.parent
            raise DriverError(f"the index of {index} is not open") from error

    def new(self, count: int, known: int) -> int:
        """A number above *known* that no process has been given, and that none will be; the first
        of *count* such in a row.

        INVARIANT: inode numbers rise. Beside the last one, in ``.cachefs/inodes``, the microseconds
        since the epoch are a floor, for that file is not synced and may go back or be lost. To
        write a number takes longer than the microsecond by which it moves the floor.
        """
        with self._lock, self.across_processes():
            last = attributes.decimal(os.pread(self._fd, 18, 0).decode(errors="replace"))
            number = max(last + 1, known + 1, self._clock_ns() // 1000)
            os.pwrite(self._fd, f"{number + count - 1:018d}\n".encode(), 0)
            return number

    @contextmanager
    def across_processes(self) -> Iterator[None]:
        """One process at a time; the thread lock is held. Not a lock on the image: readers hold
        theirs on it for long. Nested, the outermost lets go, for one descriptor has one lock."""
        if self._depth == 0:
            try:
                how = fcntl.LOCK_EX | (fcntl.LOCK_NB if self.impatient else 0)
                fcntl.flock(self._fd, how)
            except BlockingIOError as error:
                raise IndexBusyError(
                    f"the index of {self._path.parent.parent}: another process is at it"
                ) from error
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
