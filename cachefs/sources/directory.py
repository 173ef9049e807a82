"""A directory as a source: a local disk, NFS, or whatever else is mounted.

Reads with plain ``os`` rather than obstore's LocalStore. The version is checked on the very
descriptor that is read, before the first and after every piece; ``O_NONBLOCK`` and a look at the
type keep fifos and devices from hanging a thread; no percent-encoding stands between an ID and its
file; and no link leads out of the directory (:mod:`cachefs.sources.beneath`). LocalStore has none
of the four, opens by name for each range, and is no faster.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from cachefs.errors import (
    CacheFSError,
    ImageChangedError,
    ImageNotFoundError,
    InvalidValueError,
    SourceError,
    SourceRefusedError,
    SourceTimeoutError,
    SourceUnreachableError,
    is_shortage_of_files,
)
from cachefs.sources.base import SourceImage
from cachefs.sources.beneath import Opened, OutsideError, open_beneath
from cachefs.sources.checksums import ChecksumFiles
from cachefs.sources.loading import SmallFile
from cachefs.sources.names import checksum_files

PIECE: Final = 2**20

_COARSEST_TIME: Final = 2 * 10**9
"""Nanoseconds within which two changes of a directory may have one time (FAT's; a kernel's tick
is less)."""

_ABSENT: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV}
)
"""What opening a name says that is no regular file (ELOOP: a symbolic link to itself)."""

_BY_ERRNO: Final[dict[int, type[SourceError]]] = {
    errno.EACCES: SourceRefusedError,
    errno.EPERM: SourceRefusedError,
    errno.ETIMEDOUT: SourceTimeoutError,
    errno.ESTALE: SourceUnreachableError,
    errno.ENOTCONN: SourceUnreachableError,
    errno.EHOSTDOWN: SourceUnreachableError,
    errno.EHOSTUNREACH: SourceUnreachableError,
    errno.ENETUNREACH: SourceUnreachableError,
    errno.ECONNREFUSED: SourceUnreachableError,
}
"""The network errnos are those of NFS, SMB and FUSE mounts whose server is gone."""


def directory_source(path: str) -> "DirectorySource":
    """The source that a directory's path names. Looks at the directory: raises InvalidValueError
    for what is no directory, SourceError for one that is missing or may not be read."""
    if not path or "\0" in path:
        raise InvalidValueError("the path of a source directory is empty or has a NUL in it")
    source = DirectorySource(path)
    source.check()
    return source


def file_source(location: str, timeout: float) -> "DirectorySource":
    """:func:`directory_source` of a ``file:///path`` URL, as the table of schemes calls it."""
    del timeout  # a disk's are the kernel's
    parts = urlsplit(location)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise InvalidValueError("a file source is written file:///path, '#' and '?' as %23 and %3F")
    return directory_source(unquote(parts.path))


class DirectorySource:
    """The regular files directly below a directory, and symbolic links to such that do not lead out
    of it; thread-safe. Raises OSError where this process can open no more files, which says
    nothing of the source."""

    def __init__(self, directory: str, clock: Callable[[], float] = time.monotonic) -> None:
        """*directory* may be relative to where the process is now."""
        self._listed: tuple[int, dict[str, str | None]] = (0, {})
        self._top = Path(directory).absolute()
        self.url = self._top.as_uri().rstrip("/") + "/"
        self._was_mountpoint = self._top.is_mount()
        self._checksums = ChecksumFiles(self._read_small, clock, self._listing)

    def check(self) -> None:
        """See that the directory is there and can be searched; InvalidValueError if it is none.

        SourceUnreachableError also if it was a mount point and is none any more: the empty
        directory below an unmounted NFS share is not a share without images.
        """
        try:
            mode = self._top.stat().st_mode
        except FileNotFoundError:
            raise SourceUnreachableError(f"directory {self._top} does not exist") from None
        except OSError as error:
            raise self._translate(error, f"directory {self._top}") from error
        if not stat.S_ISDIR(mode):
            raise InvalidValueError(f"{self._top} is not a directory")
        if not os.access(self._top, os.X_OK, effective_ids=True):
            raise SourceRefusedError(f"no permission to read directory {self._top}")
        if self._was_mountpoint and not self._top.is_mount():
            raise SourceUnreachableError(f"{self._top} is not mounted any more")

    def stat(self, image_id: str) -> SourceImage:
        """See :meth:`cachefs.sources.base.Source.stat`.

        Directories, fifos and devices are no images: not found.
        """
        with self._open(image_id) as file:
            size, version = _identify(file.fd)
            modified = os.fstat(file.fd).st_mtime
        return SourceImage(
            image_id=image_id,
            size=size,
            version=version,
            digest=self._checksums.digest_of(image_id, version),
            ranges=True,
            source=self.url,
            modified=modified,
            private=file.private,
        )

    def forget_digest(self, image_id: str) -> None:
        """See :meth:`cachefs.sources.base.Source.forget_digest`."""
        self._checksums.forget(image_id)

    def read(self, image: SourceImage, start: int, stop: int) -> Generator[bytes]:
        """See :meth:`cachefs.sources.base.Source.read`.

        A file that is replaced by rename while it is read goes on being read: those are the bytes
        of this version. One that is written to is an ImageChangedError before the piece is yielded,
        and so is one that others may not read any more.
        """
        if not 0 <= start <= stop <= image.size:
            raise ValueError(f"[{start}, {stop}) is no range of {image.size} bytes")
        what = self._what(image.image_id)
        with self._open(image.image_id) as file:
            if file.private and not image.private:
                raise ImageChangedError(f"{what}: others may not read it any more")
            self._expect(file.fd, image)
            while start < stop:
                piece = os.pread(file.fd, min(PIECE, stop - start), start)
                self._expect(file.fd, image)
                if not piece:
                    raise SourceError(f"{what}: {stop - start} bytes too few")
                start += len(piece)
                yield piece

    def _expect(self, fd: int, image: SourceImage) -> None:
        if _identify(fd) != (image.size, image.version):
            raise ImageChangedError(f"{self._what(image.image_id)}: changed at the source")

    @contextmanager
    def _open(self, name: str) -> Generator[Opened, None, None]:
        """The regular file *name*, closed when the block is left.

        Also translates the OSErrors of the block.
        """
        what = self._what(name)
        opened = False
        try:
            with open_beneath(self._top, name) as file:
                if file is None:
                    raise ImageNotFoundError(f"{what}: not a regular file")
                opened = True
                yield file
        except OutsideError:
            raise SourceRefusedError(
                f"{what}: a symbolic link that leads out of the source; put the file itself there"
            ) from None
        except OSError as error:
            if is_shortage_of_files(error):
                raise
            if error.errno in _ABSENT and not opened:
                raise self._absent(what) from error
            raise self._translate(error, what) from error

    def _absent(self, what: str) -> CacheFSError:
        """Not found, if the directory is there to say so."""
        try:
            self.check()
        except InvalidValueError as error:
            return SourceUnreachableError(str(error))
        except SourceError as error:
            return error
        return ImageNotFoundError(f"{what}: not found")

    def _translate(self, error: OSError, what: str) -> CacheFSError:
        ours = _BY_ERRNO.get(error.errno or 0, SourceError)
        return ours(f"{what}: {error.strerror or error}")

    def _read_small(self, name: str, known: str | None, limit: int) -> SmallFile | None:
        try:
            with self._open(name) as file:
                size, version = _identify(file.fd)
        except ImageNotFoundError:
            return None
        if version == known:
            return SmallFile(version, None)
        if size > limit:
            raise SourceError(
                f"{self._what(name)}: over {limit} bytes, too large for a checksum file"
            )
        return SmallFile(version, self._small_pieces(name, version, size))

    def _small_pieces(self, name: str, version: str, size: int) -> Generator[bytes]:
        changed = f"{self._what(name)}: changed while it was read"
        with self._open(name) as file:
            start = 0
            while piece := os.pread(file.fd, PIECE, start):
                start += len(piece)
                if start > size:
                    raise SourceError(changed)
                yield piece
            if _identify(file.fd) != (size, version) or start != size:
                raise SourceError(changed)

    def _listing(self) -> dict[str, str | None]:
        """The files that are called like checksum lists; looked for again when the directory has
        changed. Empty where it may be entered but not read."""
        try:
            changed = self._top.stat().st_mtime_ns
            if self._listed[0] == changed:
                return self._listed[1]
            names = checksum_files([path.name for path in self._top.iterdir()])
            # What has changed just now may change once more without another time.
            if time.time_ns() - changed > _COARSEST_TIME:
                self._listed = changed, names
            return names
        except PermissionError:
            return {}
        except OSError as error:
            if is_shortage_of_files(error):
                raise
            raise self._translate(error, f"directory {self._top}") from error

    def _what(self, name: str) -> str:
        return f"{name!r} in {self._top}"


def _identify(fd: int) -> tuple[int, str]:
    """Size and version of an open file."""
    status = os.fstat(fd)
    return status.st_size, f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"
