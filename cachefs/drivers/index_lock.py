"""The lock under which a process opens an index, or makes it anew: one process at a time.

Owns ``.cachefs/index.lock``, whose bytes mean nothing. Not the directory's lock: its holders wait
for the index. The kernel drops it with the process. Knows nothing of databases.
"""

import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cachefs.drivers.private import give_to_owner, private_dir
from cachefs.kernel import ghosts
from cachefs.kernel.flocks import is_at, lock_until

log = logging.getLogger(__name__)

NAME = "index.lock"

_LOOK = 1.0  # seconds between two looks for a ghost
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class IndexLock:
    """See the module. For one thread at a time, which sees to that itself."""

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._is_held = False

    @contextmanager
    def within(self, seconds: float) -> Iterator[bool]:
        """Have the lock while the block runs, if that takes no longer than so many *seconds* to
        get; False where another process has it still. Nested, the outermost lets go. Where there
        can be no such lock (a read-only or a full filesystem), or a ghost has it
        (:mod:`cachefs.kernel.ghosts`), it is done without."""
        if self._is_held:
            yield True
            return
        fd = -1
        try:
            fd = self._locked(time.monotonic() + seconds)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            log.debug("the index of %s is opened without a lock: %s", self._cache_dir, error)
            yield True
            return
        self._is_held = True
        try:
            yield True
        finally:
            self._is_held = False
            os.close(fd)

    # Inside

    def _locked(self, until: float) -> int:
        """A descriptor with the lock on the file that the path names. Raises BlockingIOError where
        another has it *until* then, OSError."""
        path = private_dir(self._cache_dir) / NAME
        while True:
            fd = self._open(path)
            try:
                _lock(fd, path, until)
                if is_at(fd, path):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            if time.monotonic() >= until:
                raise BlockingIOError(f"{path} was taken away")

    def _open(self, path: Path) -> int:
        with suppress(FileExistsError):
            fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                give_to_owner(path, self._cache_dir)
            except BaseException:
                os.close(fd)
                raise
            return fd
        fd = os.open(path, _FLAGS)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise OSError(f"{path} is no file")
        if stat.S_IMODE(found.st_mode) & 0o077 and found.st_nlink == 1:
            with suppress(PermissionError):
                os.fchmod(fd, 0o600)
        return fd


def _lock(fd: int, path: Path, until: float) -> None:
    """Lock the file. Raises BlockingIOError where another process has it *until* then, OSError
    where that is one that opens no index any more: it is not waited for."""
    while not lock_until(fd, min(until, time.monotonic() + _LOOK)):
        if ghosts.held_by_ghosts(fd):
            raise OSError(f"{path} is locked by a killed process that cannot end")
        if time.monotonic() >= until:
            raise BlockingIOError(f"another process has {path}")
