"""A cached image held open for reading.

Owns the descriptor and its lock, which every evictor of every process respects, and the check that
the file is the image that the index speaks of. Decides nothing, and takes no other lock."""

import errno
import os
from dataclasses import dataclass, field

from cachefs.cache.layout import Layout
from cachefs.cache.lock import free, open_shared, share
from cachefs.drivers import Driver, Entry, QuickDriver, file_id
from cachefs.drivers.base import size_and_mtime_in

_NOT_THERE = frozenset({errno.ENOENT, errno.ELOOP, errno.EAGAIN, errno.EPERM, errno.ENXIO})
"""Errnos of an open that finds no image: no file, a symbolic link, an evictor that holds it, what
is no plain file or of a user who is not trusted, a socket."""


@dataclass(frozen=True, slots=True)
class OpenImage:
    """A cached image held open. *fd* stays readable, and the image is no victim, until it is
    closed."""

    entry: Entry
    fd: int
    _found: tuple[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_found", size_and_mtime_in(self.entry.file))

    def rest(self) -> None:
        """Let it be evicted, but keep the file open."""
        free(self.fd)

    def resume(self) -> bool:
        """Hold it again after :meth:`rest`; False where it is not the cached image any more."""
        try:
            share(self.fd)
        except BlockingIOError:
            return False
        status = os.fstat(self.fd)
        return status.st_nlink > 0 and (status.st_size, status.st_mtime_ns) == self._found

    def is_unchanged(self) -> bool:
        """Whether the file is what the record speaks of still, by its inode. Asked at every open,
        so by numbers: what is open stays the file of its inode number."""
        status = os.fstat(self.fd)
        return (status.st_size, status.st_mtime_ns) == self._found

    def close(self) -> None:
        """Let the image go."""
        os.close(self.fd)


def open_cached(layout: Layout, driver: Driver | QuickDriver, image_id: str) -> OpenImage | None:
    """Open the file and find its record, in this order: the record of a file that still has its
    name afterwards is no other publication's. None where there is no such image, or the file is not
    the one that the record speaks of."""
    try:
        fd = open_shared(layout.image(image_id))
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise
    try:
        entry = driver.get(image_id)
        if entry is not None and _is_image(fd, entry):
            return OpenImage(entry, fd)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _is_image(fd: int, entry: Entry) -> bool:
    """Whether the file has a name still, and is what the record speaks of."""
    status = os.fstat(fd)
    return status.st_nlink > 0 and file_id(status) == entry.file
