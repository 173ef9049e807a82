"""Opening a file of a cache directory that a local user may have put there instead of ours.

Owns one question: may what stands at this path be read or written as a file of the cache? It may if
it is a plain file of root or of the user who runs this process. Links are never followed, and
nothing is waited for, as the writer of a FIFO would be. Knows no layout.
"""

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from cachefs.drivers.files import is_trusted

log = logging.getLogger(__name__)

FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
"""How every file below a cache directory is opened; O_NONBLOCK besides, but where it is for
writing and reading: that waits for no FIFO, and shall wait while a lease is looked for."""


@contextlib.contextmanager
def entered(base: Path, directory: Path) -> Iterator[int]:
    """A descriptor of *directory*, which is *base* or below it; no link below *base* is followed,
    since its owner may put one there at any time. Raises OSError."""
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in directory.relative_to(base).parts:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | FLAGS, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def open_trusted(path: Path, flags: int, *, alone: bool = False, also: int | None = None) -> int:
    """Open the file *path*, as open(2); a new one is for its owner only. Raises PermissionError
    where it is not a plain file or not of a trusted user (nor of the user *also*); with *alone*
    also where it has another name elsewhere. *flags* do not have O_TRUNC: it would act before the
    check."""
    how = flags | FLAGS | (0 if flags & os.O_RDWR else os.O_NONBLOCK)
    base = _base_of(path)
    if base is None:
        fd = os.open(path, how, 0o600)
    else:
        with entered(base, path.parent) as within:
            fd = os.open(path.name, how, 0o600, dir_fd=within)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise PermissionError(errno.EPERM, "not a plain file", str(path))
        if not is_trusted(status.st_uid) and status.st_uid != also:
            raise PermissionError(errno.EPERM, f"it belongs to user {status.st_uid}", str(path))
        if alone and status.st_nlink > 1:
            raise PermissionError(errno.EPERM, "it has another name elsewhere", str(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _base_of(path: Path) -> Path | None:
    """The cache directory of a path in ``.cachefs/`` or in a directory of it; else None."""
    for above in path.parents[:2]:
        if above.name == ".cachefs":
            return above.parent
    return None


def read_trusted(path: Path, limit: int) -> bytes:
    """At most *limit* bytes of the file *path*. Raises OSError as :func:`open_trusted`."""
    with os.fdopen(open_trusted(path, os.O_RDONLY), "rb") as file:
        return file.read(limit)


def open_lock(path: Path) -> int:
    """Open the file *path* in ``.cachefs/`` to lock it, made where it is missing; its bytes mean
    nothing. It may be the directory's owner's: he may hold us up, and no more. What stands there
    and can be no lock of ours is set aside. Raises OSError."""
    also = path.parent.stat().st_uid
    try:
        return open_trusted(path, os.O_RDWR | os.O_CREAT, also=also)
    except OSError as error:
        if not is_other_kind(error):
            raise
        set_aside(path, path.parent / "aside", error)
    return open_trusted(path, os.O_RDWR | os.O_CREAT, also=also)


def is_other_kind(error: OSError) -> bool:
    """Whether an open failed because something else than a plain file of ours stands there."""
    return error.errno in _OTHER_KINDS


_OTHER_KINDS = frozenset(
    {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EPERM}
)
"""A link, also to a directory, a directory, a FIFO without reader or a socket, a device without
driver; and what :func:`open_trusted` says, and open(2) of an immutable file."""


def what_stands_at(path: Path) -> str | None:
    """What keeps an image from being published as *path*, in words; None where that place is free,
    or has a plain file of a trusted user, which a publication may replace."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return f"cannot be cached: {path} is no plain file, and not the cache's"
    if not is_trusted(status.st_uid):
        return f"cannot be cached: {path} belongs to user {status.st_uid}, and not to the cache"
    return None


def remove(path: Path) -> None:
    """Remove a file of ``.cachefs/DIRECTORY/``, or set aside what stands there instead of one."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if not is_other_kind(error):
            raise
        set_aside(path, path.parent.parent / "aside", error)


def set_aside(path: Path, aside: Path, why: object) -> None:
    """Give what stands at *path* another name, in the directory *aside*, with a warning: it is
    not ours, so it is neither used nor removed. Raises OSError."""
    number = time.time_ns()
    path.rename(aside / str(number))
    log.warning("set aside %s as %s/%d: %s", path, aside, number, why)
