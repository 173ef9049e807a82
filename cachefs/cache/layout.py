"""The files of a cache directory: what stands where, and how a name or a directory is made durable.

The layout is Glance's (``glance/image_cache/drivers/base.py``: images at the top, ``incomplete``,
``invalid`` and ``queue`` below it), and ``.cachefs/`` for all that Glance has no place for. Knows
paths only: no index, no policy.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cachefs.cache.trust import FLAGS, entered


class Layout:
    """The paths of one cache directory. Making one touches nothing; the directories are made by
    :func:`cachefs.cache.claim.claim`."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.incomplete_dir = base / "incomplete"
        self.invalid_dir = base / "invalid"
        self.queue_dir = base / "queue"
        self.private_dir = base / ".cachefs"
        self.failed_dir = self.private_dir / "failed"
        self.held_dir = self.private_dir / "held"
        self.maps_dir = self.private_dir / "maps"
        self.pins_dir = self.private_dir / "pins"
        self.priorities_dir = self.private_dir / "priorities"
        self.scratch_dir = self.private_dir / "scratch"
        self.beside_dir = self.private_dir / "beside"
        self.beside_maps_dir = self.private_dir / "beside-maps"
        self.aside_dir = self.private_dir / "aside"
        self.lock_file = self.private_dir / "lock"
        self.refused_file = self.private_dir / "refused"
        self._names = [str(path) for path in self.directories]

    @property
    def directories(self) -> tuple[Path, ...]:
        """Every directory of the cache, each after the one that it is in; ``.cachefs`` first."""
        return (
            self.private_dir,
            self.failed_dir,
            self.held_dir,
            self.maps_dir,
            self.pins_dir,
            self.priorities_dir,
            self.scratch_dir,
            self.beside_dir,
            self.beside_maps_dir,
            self.aside_dir,
            self.incomplete_dir,
            self.invalid_dir,
            self.queue_dir,
        )

    def is_whole(self) -> bool:
        """Whether all of :attr:`directories` are there."""
        return all(map(os.path.lexists, self._names))  # as strings: asked at every lock

    def image(self, image_id: str) -> Path:
        """The published image."""
        return self.base / image_id

    def incomplete(self, image_id: str) -> Path:
        """The image while it is being written."""
        return self.incomplete_dir / image_id

    def invalid(self, image_id: str) -> Path:
        """The bytes of an image that failed verification."""
        return self.invalid_dir / image_id

    def queued(self, image_id: str) -> Path:
        """The empty file that queues an image; its mtime is its place."""
        return self.queue_dir / image_id

    def failed(self, image_id: str) -> Path:
        """The record of a failure, JSON; there are failures without bytes in ``invalid/``."""
        return self.failed_dir / image_id

    def map(self, image_id: str) -> Path:
        """The durable map of an incomplete image; see :mod:`cachefs.cache.partial`."""
        return self.maps_dir / image_id

    def beside(self, image_id: str) -> Path:
        """The image while it is being written, where another writer has :meth:`incomplete`."""
        return self.beside_dir / image_id

    def beside_map(self, image_id: str) -> Path:
        """The map of :meth:`beside`."""
        return self.beside_maps_dir / image_id

    def pin(self, image_id: str) -> Path:
        """The empty file that has an image pinned once it is cached."""
        return self.pins_dir / image_id

    def priority(self, image_id: str) -> Path:
        """The priority of a queued image, where it is not 0: a number in ASCII."""
        return self.priorities_dir / image_id

    def write_atomically(self, path: Path, content: bytes) -> None:
        """Replace *path* by *content*, so that every reader, also after a power loss, finds the old
        bytes or the new, whole. *path* is on the cache directory's filesystem."""
        with self.replacing(path) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)

    @contextlib.contextmanager
    def replacing(self, path: Path) -> Iterator[BinaryIO]:
        """A new file that gets the name *path* when the block ends; where it raises, nothing
        happens. Nothing is made durable."""
        # Not named by the process's number: containers that share the directory share numbers.
        name = secrets.token_hex(8)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS
        with (
            entered(self.base, self.scratch_dir) as scratch,
            entered(self.base, path.parent) as target,
        ):
            fd = os.open(name, flags, 0o600, dir_fd=scratch)
            try:
                with os.fdopen(fd, "wb") as file:
                    yield file
                os.rename(name, path.name, src_dir_fd=scratch, dst_dir_fd=target)
            except BaseException:
                os.unlink(name, dir_fd=scratch)
                raise


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (fsync(2): syncing a file does not sync its name)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_removable(path: Path) -> None:
    """Raise the OSError that will keep a file from being removed, if it shows: an immutable file
    (``chattr +i``) or a read-only filesystem."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EROFS}:
            raise


def files_in(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Name and stat of each regular file there, in no order; one that vanishes meanwhile is left
    out, and a directory that has been removed under us has none."""
    try:
        listing = os.scandir(directory)
    except FileNotFoundError:
        return
    with listing:
        for item in listing:
            with contextlib.suppress(FileNotFoundError):
                if item.is_file(follow_symlinks=False):
                    yield item.name, item.stat(follow_symlinks=False)
