"""Locks between threads and between processes: one for a cache directory, and one on each file in
use.

The directory's guards what must be seen whole: record and rename, remove and unlink, a reservation.
It is never held while bytes move. A file's says that it is being read (shared) or written (owned).
The kernel drops them with the process, so a crash leaves none behind."""

import contextlib
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from cachefs.cache.trust import open_lock, open_trusted


class DirectoryLock:
    """A reentrant lock over threads and processes; a context manager. Waits without a limit."""

    def __init__(self, path: Path) -> None:
        self._threads = threading.RLock()
        self._fd = open_lock(path)
        self._depth = 0

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            if self._fd < 0:
                raise OSError(errno.EBADF, "the cache is closed")
            if self._depth == 0:
                fcntl.flock(self._fd, fcntl.LOCK_EX)
            self._depth += 1
        except BaseException:
            self._threads.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._threads.release()

    def close(self) -> None:
        """Give the descriptor back; the lock is not used after this."""
        fd, self._fd = self._fd, -1
        os.close(fd)


def own(fd: int) -> None:
    """Lock the whole file for writing or removing it; *fd* must be writable.

    Raises BlockingIOError where another descriptor shares or owns it. Like all locks here it
    belongs to the open file description (``F_OFD_SETLK``, fcntl(2)), so it is the same between two
    threads as between two processes, and goes when the descriptor is closed."""
    _set(fd, fcntl.F_WRLCK)


def share(fd: int) -> None:
    """Lock the whole file for reading, or turn ownership into sharing. Raises BlockingIOError where
    another descriptor owns it."""
    _set(fd, fcntl.F_RDLCK)


def free(fd: int) -> None:
    """Neither own nor share the file any more, and keep it open."""
    _set(fd, fcntl.F_UNLCK)


def is_held(path: Path) -> bool:
    """Whether a descriptor, of this process or another, owns or shares the file; False where it is
    missing.

    Asks without locking (``F_OFD_GETLK``), so that no one who locks just now is refused because of
    it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(
            fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        )
    finally:
        os.close(fd)
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def open_shared(path: Path) -> int:
    """Open a file for reading and share it; O_NOATIME where we may, since the xattr driver keeps
    its order in the atime. Raises BlockingIOError where a writer owns it, OSError as
    :func:`cachefs.cache.trust.open_trusted`."""
    try:
        fd = open_trusted(path, os.O_RDONLY | os.O_NOATIME)
    except PermissionError:  # O_NOATIME is the owner's, see open(2)
        fd = open_trusted(path, os.O_RDONLY)
    try:
        share(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def owned(path: Path) -> Iterator[None]:
    """Own the file while it is removed; a missing one needs no owner. Raises BlockingIOError.

    A file that we may not write, only remove, cannot be locked; it is looked at instead."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield
        return
    except PermissionError:
        if is_held(path):
            raise BlockingIOError(f"{path} is open") from None
        yield
        return
    try:
        own(fd)
        yield
    finally:
        os.close(fd)


_FLOCK = struct.Struct("hhqqi4x")
"""``struct flock`` of 64-bit Linux (``asm-generic/fcntl.h``): type, whence, start, length, pid."""


def _set(fd: int, kind: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
