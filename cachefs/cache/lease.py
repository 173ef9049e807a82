"""Whether a file is being written, by a process that takes no lock: a living Glance, say.

A read lease (``F_SETLEASE``, fcntl(2)) is refused while any descriptor of the file is open for
writing. It is asked for and given back at once: a process that opens the file for writing in that
moment waits for it, and no longer. Where a filesystem has no leases (FUSE, some of the network's),
or the file is another user's, a recent write is the sign of life instead.
"""

import errno
import fcntl
import os
import signal
import stat
import time
from pathlib import Path

from cachefs.cache.lock import is_held, is_left
from cachefs.cache.trust import FLAGS

ALIVE = 300.0
"""Seconds for which a write counts as the sign of a living writer where there are no leases."""


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


def has_writer(path: Path) -> bool:
    """Whether any descriptor of the file is open for writing. Raises OSError as open(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | FLAGS)
    try:
        # The signal that a lease is wanted back would else be SIGIO, which ends a process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return True
            return os.fstat(fd).st_mtime > time.time() - ALIVE
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False
    finally:
        os.close(fd)
