"""Locks between threads and between processes: one for a cache directory, and one on each file in
use.

The directory's guards what must be seen whole: record and rename, remove and unlink, a reservation.
It is never held while bytes move. A file's says that it is being read (shared) or written (owned).
The kernel drops them with the process, so a crash leaves none behind."""

import contextlib
import errno
import fcntl
import logging
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

from cachefs.cache.trust import open_lock, open_trusted
from cachefs.kernel import ghosts
from cachefs.kernel.flocks import is_at, lock_until

log = logging.getLogger(__name__)

_LOOK: Final = 1.0  # seconds between two looks for a ghost, while a lock is waited for
_SAY_AFTER: Final = 2.0  # seconds
_SAY_AGAIN: Final = 60.0
_POLL: Final = 0.01


class DirectoryLock:
    """A reentrant lock over threads and processes; a context manager. Waits without a limit, but
    not for a ghost (:mod:`cachefs.kernel.ghosts`), and says in the log what it waits for.

    INVARIANT: who has the lock has it on the file that the path names. A lock that ghosts hold is
    left to them with its file, and a new file gets the name. No two living processes come to have
    it by that: one alone replaces the file, under a lock for that; it comes with the new one locked
    already, and does not believe it has the lock before the old one is free or a ghost's still;
    and a process that gets the old one after that finds that the path names another."""

    def __init__(
        self,
        path: Path,
        restore: Callable[[], None] | None = None,
        is_whole: Callable[[], bool] = lambda: True,
    ) -> None:
        """*restore* makes the lock's directory anew. It is called where that has gone, and under
        the lock where what it guards is not whole."""
        self._threads = threading.RLock()
        self._path = path
        self._restore = restore
        self._is_whole = is_whole
        self._fd = open_lock(path)
        self._closed = False
        self._depth = 0

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            if self._closed:
                raise OSError(errno.EBADF, "the cache is closed")
            if self._depth == 0:
                self._lock()
                self._mend()
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

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[bool]:
        """Have the lock, if that takes no longer than so many seconds; whether it is had."""
        until = time.monotonic() + seconds
        if not self._threads.acquire(timeout=seconds):
            yield False
            return
        try:
            if not self._lock_until(until):
                yield False
                return
            self._depth += 1
            try:
                yield True
            finally:
                self._depth -= 1
                if self._depth == 0:
                    fcntl.flock(self._fd, fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def _lock_until(self, until: float) -> bool:
        if self._depth:
            return True
        is_named = self._fd >= 0 and is_at(self._fd, self._path)  # else it takes longer
        return is_named and lock_until(self._fd, until)

    def close(self) -> None:
        """Give the descriptor back; the lock is not used after this."""
        self._closed = True
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # Inside

    def _lock(self) -> None:
        if self._fd < 0:  # its file could not be opened anew, the last time: a full disk, say
            self._fd = self._open()
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not self._wait():
                    continue
            if is_at(self._fd, self._path):
                return
            os.close(self._fd)
            self._fd = -1
            self._fd = self._open()

    def _mend(self) -> None:
        """See to it that all is there that the lock guards."""
        if self._restore is None or self._is_whole():
            return
        try:
            self._restore()
        except BaseException:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            raise

    def _open(self) -> int:
        try:
            return open_lock(self._path)
        except FileNotFoundError:
            if self._restore is None:
                raise
        self._restore()
        return open_lock(self._path)

    def _wait(self) -> bool:
        """Whether the lock of :attr:`_fd` was got; else that is of another file now, to be tried
        anew."""
        waiting = _Waiting(self._fd)
        began = last = time.monotonic()
        said = False
        while not waiting.wait(_LOOK):
            now = time.monotonic()
            if now - began > _SAY_AFTER and (not said or now - last > _SAY_AGAIN):
                said, last = True, now
                log.warning(
                    "waiting for the lock on %s, held by %s", self._path, holder_text(self._path)
                )
            if ghosts.held_by_ghosts(self._fd):
                log.warning("the lock on %s is a killed process's that cannot end", self._path)
                fresh = self._replace()
                waiting.abandon()
                self._fd = fresh
                if fresh < 0:
                    self._fd = open_lock(self._path)
                return fresh >= 0
        if said:
            log.warning("got the lock on %s after %.0f s", self._path, time.monotonic() - began)
        return True

    def _replace(self) -> int:
        """Another file by this name, locked; or -1 where another process has seen to that."""
        with contextlib.ExitStack() as stack:
            alone = open_lock(self._path.with_name(f"{self._path.name}.replace"))
            stack.callback(os.close, alone)
            fcntl.flock(alone, fcntl.LOCK_EX)
            if not is_at(self._fd, self._path):
                return -1
            old = open_lock(self._path)
            stack.callback(os.close, old)
            scratch = self._path.with_name(f"{self._path.name}.new")
            scratch.unlink(missing_ok=True)
            fresh = open_lock(scratch)
            fcntl.flock(fresh, fcntl.LOCK_EX)
            scratch.rename(self._path)
            while not ghosts.held_by_ghosts(old):  # else one got it who saw the old name
                try:
                    fcntl.flock(old, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(_POLL)
            return fresh


class _Waiting:
    """A thread that waits for an flock in the caller's place."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._done = threading.Event()
        self._guard = threading.Lock()
        self._abandoned = False
        self._error: OSError | None = None
        threading.Thread(target=self._run, name="cachefs-lock", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether the lock was got within *seconds*. Raises OSError as flock(2)."""
        if not self._done.wait(seconds):
            return False
        if self._error is not None:
            raise self._error
        return True

    def abandon(self) -> None:
        """Leave the descriptor to the thread, which closes it when its lock can be had."""
        with self._guard:
            self._abandoned = True
            if self._done.is_set():
                os.close(self._fd)

    def _run(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except OSError as error:
            self._error = error
        with self._guard:
            self._done.set()
            if self._abandoned:
                os.close(self._fd)


def holder_text(path: Path) -> str:
    """Who holds an flock on the file, for a message."""
    holder = ghosts.lock_holder(path)
    return f"process {holder[0]} ({holder[1]})" if holder else "a process that is not to be seen"


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


def is_owned(path: Path) -> bool:
    """As :func:`is_held`, of what only its writer locks; False where its writer is a ghost."""
    return is_held(path) and not is_left(path)


def is_left(path: Path) -> bool:
    """Whether a ghost owns or shares the file and no living process does: it is locked, but can be
    replaced by another file of that name, since no code of ours writes to it again. To be asked
    and acted upon under the directory's lock, under which a file is locked for writing."""
    if not is_held(path):
        return False
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return ghosts.held_by_ghosts(fd)
    finally:
        os.close(fd)


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
