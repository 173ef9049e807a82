"""Every error that cachefs raises on purpose, and the one map from exceptions to errnos.

Owns the names and the errnos; knows nothing of who raises them. ``FUSEError`` is made of these in
:mod:`cachefs.fuse` and nowhere else.
"""

import errno
from typing import ClassVar, TypeVar


class CacheFSError(Exception):
    """Base of all errors raised on purpose; *errno* is what a system call returns for it."""

    errno: ClassVar[int] = errno.EIO


_E = TypeVar("_E", bound=CacheFSError | OSError)


class InvalidImageIDError(CacheFSError, ValueError):
    """The name can be no image's ID (see :func:`cachefs.image.check_image_id`)."""

    errno = errno.EINVAL


class InvalidValueError(CacheFSError, ValueError):
    """A setting, size, digest or control value that cannot be understood."""

    errno = errno.EINVAL


class ImageNotFoundError(CacheFSError, FileNotFoundError):
    """Neither the cache nor the source has the image; for callers of the library, a missing
    file."""

    errno = errno.ENOENT  # type: ignore[misc]  # the class's, as all ours, and not the instance's


class ImageExistsError(CacheFSError):
    """The image is cached, queued or being fetched already."""

    errno = errno.EEXIST


class ImageBusyError(CacheFSError):
    """The image is pinned, or held by another process, and may not be changed now."""

    errno = errno.EBUSY


class TooManyFilesError(CacheFSError):
    """This process can open no more files."""

    errno = errno.EMFILE


class StaleError(CacheFSError):
    """The number means nothing any more; the kernel looks the name up again."""

    errno = errno.ESTALE


class NoRoomError(CacheFSError):
    """The image does not fit into the cache, or no room can be made for it now."""

    errno = errno.ENOSPC


class ImageTooLargeError(NoRoomError):
    """The image is larger than the cache may ever be: waiting for room is in vain."""


class ChecksumError(CacheFSError):
    """The bytes are not those that the digest promised."""

    errno = errno.EIO


class ImageChangedError(CacheFSError):
    """The source's image changed while it was being read."""

    errno = errno.EIO


class SourceError(CacheFSError):
    """The source answered with something that is not the image. *retry_after* is for how many
    seconds it asked to be left alone (``Retry-After``, RFC 9110, 10.2.3), None where it did not."""

    errno = errno.EIO
    retry_after: float | None = None


class SourceUnavailableError(SourceError):
    """The source cannot serve requests now, whatever is asked for (429, 5xx)."""


class SourceRefusedError(SourceError):
    """The source knows us and says no: bad credentials or no permission."""

    errno = errno.EACCES


class SourceUnreachableError(SourceError):
    """The source does not answer at all."""

    errno = errno.EHOSTUNREACH


class SourceTimeoutError(SourceError):
    """The source took too long to answer."""

    errno = errno.ETIMEDOUT


class ReadOnlyError(CacheFSError):
    """Images are immutable; nothing below ``images/`` can be written."""

    errno = errno.EROFS


class NotPermittedError(CacheFSError):
    """The operation means nothing for this file (a mkdir among control files, say)."""

    errno = errno.EPERM


class InterruptedReadError(CacheFSError):
    """The process that waited for this has been sent a signal."""

    errno = errno.EINTR


class CacheDirectoryError(CacheFSError):
    """The directory may not become a cache: it has files that are not the cache's."""

    errno = errno.ENOTEMPTY


class DriverError(CacheFSError):
    """A driver cannot be loaded or configured here."""


class IndexBusyError(DriverError):
    """The index is locked by another thread or process: to be asked where one may wait."""


class IndexLostError(DriverError):
    """The index is damaged, gone, or of a kind that we cannot use: to be made anew."""


class MountError(CacheFSError):
    """The filesystem cannot be mounted or unmounted; the text says why, in one line."""


def is_shortage_of_files(error: BaseException) -> bool:
    """Whether *error* says that this process, or this machine, has too many files open: no word of
    a source's, and passing."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def without_traceback(error: _E) -> _E:
    """A copy of *error* for one more task to raise, or to remember: an exception keeps the
    traceback, and so the frames and all they hold, of the task that raised it."""
    copy = type(error)(*error.args)
    copy.__dict__.update(error.__dict__)
    return copy


def errno_of(error: BaseException) -> int:
    """The errno that a system call returns for *error*; EIO for one that has none of its own."""
    if isinstance(error, CacheFSError):
        return error.errno
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EIO
