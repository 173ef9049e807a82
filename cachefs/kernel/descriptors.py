"""How many files this process may have open, and whether there is room for one more.

Owns the limit (``RLIMIT_NOFILE``, getrlimit(2)) and a reserve below it: what users have open never
takes the last descriptors, which the process itself needs to go on (a directory that it lists, a
connection to a source, a file that it removes), so that an open too many fails and nothing else.
"""

import errno
import os
import resource
from pathlib import Path
from typing import Final

RESERVE: Final = 256
"""Descriptors that are kept for the process itself; a quarter of the limit where that is less."""


def raise_limit() -> None:
    """Have as many files open as we may: the soft limit is low for programs that use select(2),
    which this does not. Raises OSError or ValueError where the system does not let us."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_room(files: int = 1) -> None:
    """Raise OSError, EMFILE, where so many files more would take of the reserve. Some
    microseconds."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    count = _count()
    if count + files > limit - min(RESERVE, limit // 4):
        raise OSError(errno.EMFILE, f"{count} of {limit} files are open (ulimit -n)")


def _count() -> int:
    """How many files are open: what Linux 6.2 and newer say as the size of the directory
    (``proc_fd_getattr`` in ``fs/proc/fd.c``). Before that the lowest number that is free (open(2)),
    which is less where there are gaps."""
    count = Path("/proc/self/fd").stat().st_size
    if count:
        return count
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    os.close(fd)
    return fd
