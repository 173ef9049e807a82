"""Whether a file is being written, by a process that takes no lock: a living Glance, say.

A read lease (``F_SETLEASE``, fcntl(2)) is refused while any descriptor of the file is open for
writing. It is asked for and given back at once: a process that opens the file for writing in that
moment waits for it, and no longer. Where a filesystem has no leases (FUSE, some of the network's),
or the file is another user's, a recent write is the sign of life instead.

A Glance closes the file before it renames it, and waits for its database in between: then it
publishes whatever stands there. So nothing of ours is put in the place of what it has just written
(:func:`is_just_closed`).

Such a process may open for writing, and so empty, whatever stands at ``incomplete/ID``, also a file
that gets its image's name at this moment (:func:`unwritten`).
"""

import contextlib
import errno
import fcntl
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cachefs.cache.lock import is_held, is_left
from cachefs.cache.trust import FLAGS

ALIVE = 300.0
"""Seconds for which a write counts as the sign of a living writer where there are no leases."""

CLOSING = 5.0
"""Seconds after its last write for which another program's file may be about to be renamed."""

MARK = "user.cachefs.incomplete"
"""The extended attribute of a file that a transaction of ours has made."""

_FORKED = 0.1
"""Seconds for which a writer may be a copy of our own descriptor, in a child of another thread that
has not executed its program yet."""


def is_being_written(path: Path) -> bool:
    """Whether a process, this one too, is writing the file: it owns its lock, or has it open for
    writing, or the file may not be looked into. False where there is no plain file, and where the
    writer is a ghost."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        return (is_held(path) or has_writer(path)) and not is_left(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        return True  # another user's, who alone can tell
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:  # another kind of file since the look at it
            return False
        raise


def mark(fd: int) -> None:
    """The file is a transaction's of ours."""
    with contextlib.suppress(OSError):  # no user attributes: what is not written is nobody's
        os.setxattr(fd, MARK, b"1")


def unmark(fd: int) -> None:
    """The file is another program's, or is published."""
    with contextlib.suppress(OSError):
        os.removexattr(fd, MARK)


def is_just_closed(path: Path) -> bool:
    """Whether the file may be one that another program has closed and is about to rename: not of
    ours, whose writers hold a lock until it has its name, and written a moment ago. False where a
    mark could not be told."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or not status.st_size:  # empty: it has no mark yet
            return False
        if not 0 <= time.time() - status.st_mtime < CLOSING:
            return False
        os.getxattr(path, MARK, follow_symlinks=False)
    except OSError as error:
        return error.errno == errno.ENODATA
    return False


def has_writer(path: Path) -> bool:
    """Whether any descriptor of the file is open for writing. Raises OSError as open(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | FLAGS)
    try:
        try:
            _lease(fd)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return True
            return os.fstat(fd).st_mtime > time.time() - ALIVE
        _give_back(fd)
        return False
    finally:
        os.close(fd)


@contextlib.contextmanager
def unwritten(fd: int) -> Iterator[Callable[[], bool]]:
    """Nobody writes to the file, which *fd* has open for reading alone, while the block runs: who
    opens it for writing waits. Whether nobody does so is what the yielded function tells. Raises
    BlockingIOError where a descriptor is open for writing. Where there are no leases nothing is
    known, and nobody waits."""
    try:
        _lease_alone(fd)
    except BlockingIOError:
        raise
    except OSError:
        yield lambda: True
        return
    try:
        yield lambda: fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK
    finally:
        _give_back(fd)


def _lease_alone(fd: int) -> None:
    until = time.monotonic() + _FORKED
    while True:
        try:
            _lease(fd)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(_FORKED / 10)
        else:
            return


def _lease(fd: int) -> None:
    # The signal that a lease is wanted back would else be SIGIO, which ends a process.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)


def _give_back(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
