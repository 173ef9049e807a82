"""Writing one image: start, write, then commit, abort or reject. The one path by which anything is
published.

States of ``incomplete/ID``, and what a crash leaves in each:

======== ================================================= ==================================
state    on disk                                           mended at start by
======== ================================================= ==================================
open     the file, locked by its writer; its length is     the lock is gone with the writer:
         the room that is reserved for it; a map of its    with a map, the file is kept to be
         chunks, where the source can be asked for ranges  gone on with, else it is removed
synced   the same, all bytes durable, and on the file what the same
         its record will say (drivers.file_record)
recorded the same, and the index has the image             the record has no file: dropped
renamed  ``ID``, recorded; the name perhaps not durable    name lost: record dropped;
                                                           record lost: file adopted, with what
                                                           is written on it
======== ================================================= ==================================

INVARIANT: no name directly in the cache directory ever stands for bytes that were not verified and
synced."""

import contextlib
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from cachefs.cache.lease import is_being_written, is_just_closed, mark, unmark, unwritten
from cachefs.cache.lock import own, share
from cachefs.cache.partial import PartialMap, Version
from cachefs.cache.trust import FLAGS, entered, open_trusted, remove
from cachefs.drivers import Entry, describe
from cachefs.errors import (
    CacheFSError,
    ChecksumError,
    ImageBusyError,
    NoRoomError,
    SourceError,
    is_shortage_of_files,
)
from cachefs.image import Digest
from cachefs.kernel.flocks import is_at
from cachefs.units import to_ns

if TYPE_CHECKING:
    from hashlib import _Hash

GROWTH = 64 * 2**20
"""Most bytes reserved ahead of those written when the size of an image is not known beforehand."""


class Owner(Protocol):
    """What a transaction asks of the cache it writes into."""

    def reserve(self, path: Path, fd: int, size: int, *, ahead: int = 0) -> int:
        """Make room and lengthen the file to *size* bytes, and by up to *ahead* more where that
        costs nobody anything, or raise NoRoomError. The new length."""

    def publish(self, entry: Entry, path: Path, fd: int) -> Entry:
        """Record the synced file and rename it into place."""

    def reject(
        self,
        path: Path,
        error: CacheFSError,
        source: str | None,
        version: str | None = None,
        *,
        wanted: bool = False,
    ) -> None:
        """Move the file to ``invalid/`` and remember why."""

    def now(self) -> float:
        """The cache's clock, in seconds."""


class Transaction:
    """One image being written. Made by ``Store.begin``; ends in exactly one of :meth:`commit`,
    :meth:`abort` and :meth:`reject`, after which it is closed. As a context manager it aborts
    unless it has ended. One thread appends; :attr:`fd` may be written by several at known
    offsets."""

    def __init__(
        self,
        owner: Owner,
        path: Path,
        fd: int,
        size: int | None,
        partial: PartialMap | None = None,
    ) -> None:
        self.image_id = path.name
        self.path = path
        self.fd = fd
        self.size = size
        self.partial = partial
        self._owner = owner
        self._reserved = 0
        self._written = 0
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def reserve(self, size: int) -> None:
        """Have room for *size* bytes; more may come, or fewer. Raises NoRoomError, and
        ImageBusyError when another process has taken the file away."""
        if size > self._reserved:
            self._reserved = self._owner.reserve(self.path, self.fd, size)

    def write(self, data: bytes | memoryview) -> None:
        """Append *data*. Raises NoRoomError when the image outgrows the cache, ImageBusyError when
        another process has taken the file away, OSError as write(2)."""
        view = memoryview(data).cast("B")
        end = self._written + len(view)
        if self.size is not None and end > self.size:
            raise NoRoomError(
                f"image {self.image_id!r} is longer than the {self.size} bytes promised"
            )
        self._check_length()
        if end > self._reserved:
            # Never more ahead than is there already, so that a small image takes little.
            self._reserved = self._owner.reserve(self.path, self.fd, end, ahead=min(end, GROWTH))
        while view:
            count = os.pwrite(self.fd, view, self._written)
            self._written += count
            view = view[count:]

    def commit(
        self,
        *,
        checksum: Digest | None = None,
        verified: bool = False,
        source: str | None = None,
        hits: int = 0,
        modified: float | None = None,
        private: bool = False,
    ) -> Entry:
        """Publish the image with the digest that its bytes were found to have, and the hits it had
        while it was incomplete. *modified* is the source's date of it, in seconds since the epoch,
        and becomes the file's; None where the source tells none. *private* says that others may not
        read it at the source.

        Returns the record. After an error the transaction is still open, though nothing more can be
        written, and nothing is published (but for an fsync of the directory that failed: then it
        is, perhaps not durably). Raises
        SourceError when fewer bytes were appended than promised, ImageBusyError when
        another process has taken the file away.
        """
        self._check_length()
        size = self.size if self.size is not None else self._written
        if 0 < self._written < size:
            raise SourceError(
                f"image {self.image_id!r} ended after {self._written} of {size} bytes"
            )
        if self.size is None:
            self._shorten(size)
        now = self._owner.now()
        modified = now if modified is None else modified
        os.utime(self.fd, ns=(to_ns(now), to_ns(modified)))
        entry = Entry(
            image_id=self.image_id,
            size=size,
            hits=hits,
            last_accessed=now,
            last_modified=modified,
            checksum=checksum_text(checksum),
            fetched=now,
            source=source,
            verified=verified,
            private=private,
        )
        describe(self.fd, entry)
        os.fsync(self.fd)
        self._stop_writing()
        entry = self._owner.publish(entry, self.path, self.fd)
        unmark(self.fd)
        self._remove_map()
        self._close()
        return entry

    def abort(self) -> None:
        """Throw the bytes away. Nothing happens to a transaction that has ended."""
        if self._open:
            try:
                self._remove_map()
                if not self._is_anothers():
                    self.path.unlink()
            finally:
                self._close()

    def keep(self) -> None:
        """Leave off, and keep what is marked in the map for a later :meth:`Store.begin` of the same
        version. Blocks until it is durable. Without a map, or where another program writes to
        the file, it is :meth:`abort`."""
        if self.partial is None:
            self.abort()
        elif self._open:
            try:
                self.partial.sync(self.fd)
                anothers = self._is_anothers()  # after the sync, which may take long
            except OSError as error:
                if not is_shortage_of_files(error):
                    raise
                anothers = False
            if anothers:
                self.abort()
            else:
                self._close()

    def reject(
        self,
        error: CacheFSError,
        source: str | None = None,
        version: str | None = None,
        *,
        wanted: bool = False,
    ) -> None:
        """Put the bytes under ``invalid/`` with *error* as the reason; *version* is the caller's
        name for them. The image leaves the queue, but where it is *wanted* still. Where another
        program writes to the file by now, the bytes are its own. After an OSError the transaction
        is still open."""
        if self.size is None:
            self._shorten(self._written)
        if not self._is_anothers():
            self._owner.reject(self.path, error, source, version, wanted=wanted)
        self._remove_map()
        self._close()

    def _is_anothers(self) -> bool:
        """Whether the file, or its name, is another writer's by now. A Glance gives the image's
        name to whatever stands at ``incomplete/ID`` when it has written all: so what it writes to
        stays there, and no file of ours comes in its place."""
        if is_at(self.fd, self.path) and not self._is_emptied():
            self._stop_writing()
            with contextlib.suppress(BlockingIOError), unwritten(self.fd):
                return False
        unmark(self.fd)
        return True

    def _check_length(self) -> None:
        """Raise ImageBusyError where another program, a Glance say, has opened our file for writing
        and so emptied it: its length was the reservation."""
        if self._is_emptied():
            raise ImageBusyError(
                f"image {self.image_id!r} was emptied by another program while it was written"
            )

    def _shorten(self, size: int) -> None:
        """Give back what was reserved ahead."""
        if self._reserved != size:
            self._reserved = size
            os.ftruncate(self.fd, size)

    def _stop_writing(self) -> None:
        """Have the file open for reading alone, and share its lock: as long as we could write, no
        lease would tell whether anybody else can."""
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            share(self.fd)
            share(fd)
            os.dup2(fd, self.fd, inheritable=False)
        finally:
            os.close(fd)

    def _is_emptied(self) -> bool:
        return os.fstat(self.fd).st_size < self._reserved

    def _remove_map(self) -> None:
        if self.partial is not None:
            self.partial.remove()

    def _close(self) -> None:
        fd, self.fd = self.fd, -1  # soon another file's number: nobody writes to it by mistake
        self._open = False
        if self.partial is not None:
            self.partial.close()
        os.close(fd)


class Hasher:
    """Computes the digest that is promised, or *default* where none is, as bytes arrive in
    order."""

    def __init__(self, expected: Digest | None, default: str) -> None:
        self._expected = expected
        self._algorithm = expected.algorithm if expected else default
        self._hash: _Hash = hashlib.new(self._algorithm, usedforsecurity=False)

    @property
    def verifies(self) -> bool:
        """Whether a digest was promised."""
        return self._expected is not None

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._hash.update(data)

    def finish(self) -> Digest:
        """The digest of all bytes. Raises ChecksumError where it is not the promised one."""
        found = Digest(self._algorithm, self._hash.hexdigest())
        if self._expected is not None and found != self._expected:
            raise ChecksumError(f"checksum is {found}, expected {self._expected}")
        return found


def checksum_text(digest: Digest | None) -> str | None:
    """A digest as records have it: bare hex where it is MD5, as in Glance, else ``ALGO:HEX``."""
    if digest is None:
        return None
    return digest.hex if digest.algorithm == "md5" else str(digest)


def open_incomplete(path: Path, map_path: Path, *, keep: bool = False) -> int:
    """Open and lock ``incomplete/ID``; the descriptor. Raises ImageBusyError while a writer lives,
    OSError where something else than a file of ours stands there.

    A file whose writer is gone must not block its image: it is replaced by a new one, never
    emptied, since a thread of its writer may be left; or it is taken over where *keep* says so.
    Nothing else that is there is ever written to: it may be another program's, of this moment.

    INVARIANT: a map never outlives the bytes it speaks of; it goes before they do."""
    while True:
        with contextlib.suppress(FileExistsError):
            with entered(path.parent.parent, path.parent) as within:
                fd = os.open(
                    path.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | FLAGS, 0o640, dir_fd=within
                )
            _own(fd, path)
            try:
                mark(fd)
                remove(map_path)  # of bytes that another program has removed
            except BaseException:
                os.close(fd)
                raise
            return fd
        if is_being_written(path) or is_just_closed(path):
            raise _busy(path)
        try:
            fd = open_trusted(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        _own(fd, path)
        if keep and is_at(fd, path):
            return fd
        try:
            if is_at(fd, path):  # else its last writer ended between our open and our lock
                remove(map_path)
                path.unlink()
        finally:
            os.close(fd)


def _own(fd: int, path: Path) -> None:
    try:
        own(fd)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            raise _busy(path) from None
        raise


def _busy(path: Path) -> ImageBusyError:
    return ImageBusyError(f"image {path.name!r} is being cached already")


def abandoned_map(path: Path, map_path: Path, version: Version) -> PartialMap | None:
    """The map of an abandoned file, if its bytes are surely of *version*."""
    earlier = PartialMap.open(map_path)
    if earlier is None:
        return None
    with contextlib.suppress(FileNotFoundError):
        if earlier.version.is_surely(version) and path.lstat().st_size == version.size:
            return earlier
    earlier.close()
    return None


def new_map(map_path: Path, version: Version) -> PartialMap:
    """An empty map for bytes of *version*; durable."""
    try:
        return PartialMap.create(map_path, version)
    except ValueError:  # a tag too long for a map: an ETag may have any length
        return PartialMap.create(map_path, replace(version, tag=None))
