"""Reading a file for the kernel: at once where the page cache has the bytes, else in a thread.

One buffer serves all reads that need not wait. That is safe because the caller consumes it
before the event loop runs anything else (pyfuse3 replies right after the handler returns, without
awaiting)."""

import errno
import mmap
import os

import trio

from cachefs.errors import CacheFSError

BUFFER = 2**20
"""Bytes of the shared buffer: the most that the kernel asks for in one read (FUSE_MAX_MAX_PAGES is
256 pages in ``fs/fuse/fuse_i.h``)."""

MAX_READS = 16
"""Reads that may wait for the disk at once, each in a thread."""


class ShortFileError(CacheFSError):
    """Another program has made a file shorter than its image."""


class Reader:
    """Reads from file descriptors on behalf of one event loop."""

    def __init__(self) -> None:
        self._view = memoryview(mmap.mmap(-1, BUFFER))  # on a page's boundary: copied faster
        self._limiter = trio.CapacityLimiter(MAX_READS)

    async def read(self, fd: int, offset: int, size: int, end: int) -> memoryview | bytes:
        """The bytes [*offset*, *offset* + *size*) of a file of *end* bytes.

        Consume the result before awaiting anything. Raises OSError as read(2), ShortFileError where
        the file has become shorter: to its reader that would be the end.
        """
        size = max(0, min(size, end - offset))
        if size <= BUFFER:
            count = self._read_now(fd, offset, size)
            if count == size:
                return self._view[:count]
        data = await trio.to_thread.run_sync(os.pread, fd, size, offset, limiter=self._limiter)
        if len(data) < size:
            raise ShortFileError(f"the file ends before byte {offset + size} of {end}")
        return data

    def _read_now(self, fd: int, offset: int, size: int) -> int:
        """How many bytes came without waiting for the disk (``RWF_NOWAIT``, preadv2(2))."""
        try:
            return os.preadv(fd, [self._view[:size]], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # a filesystem that cannot promise it
                return 0
            raise
