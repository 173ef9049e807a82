"""Kinds of open images, and the nodes of what is known by its open file only.

Owns how each is read and closed. What an open or a close means to others, the names and links of
the files among it, is their maker's: :mod:`cachefs.vfs.image_files`, which hears of each last
close."""

from collections.abc import Callable
from contextlib import suppress

from cachefs.cache import OpenImage
from cachefs.errors import CacheFSError, ReadOnlyError, StaleError
from cachefs.fetcher import Flight
from cachefs.vfs.inodes import split
from cachefs.vfs.nodes import Attributes, Caller, Node, OpenFile, Ownership
from cachefs.vfs.reader import Reader, ShortFileError
from cachefs.vfs.waiting import unless_interrupted


class ImageFile(OpenFile):
    """A complete image, open or held; one for all who have that inode open."""

    direct = False

    def __init__(
        self, image: OpenImage, reader: Reader, inode: int, on_close: Callable[["ImageFile"], None]
    ) -> None:
        self.handle = inode
        self.image = image
        self.entry = image.entry
        self.size = image.entry.size
        self.modified: float | None = image.entry.last_modified
        self.private = image.entry.private
        self.fd: int = image.fd
        self.held = False
        self._reader = reader
        self._on_close = on_close

    def read_fd(self, start: int, stop: int) -> int | None:
        return self.fd

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        return await self._reader.read(self.fd, offset, size, self.size)

    def close(self) -> None:
        self._on_close(self)


class LazyFile(OpenFile):
    """An image that is being fetched, open; reads wait for their bytes, or until *pid* is
    interrupted (0: the transport sees to that). It is held from the start: a fetch that fails takes
    away its name."""

    direct = False

    def __init__(
        self,
        flight: Flight,
        reader: Reader,
        *,
        pid: int,
        handle: int,
        on_close: Callable[[], None],
    ) -> None:
        self.handle = handle
        self.flight = flight
        self.size = flight.image.size
        self.modified = flight.image.modified
        self.private = flight.image.private
        self._reader = reader
        self._pid = pid
        self._on_close = on_close
        flight.add_reader()

    def read_fd(self, start: int, stop: int) -> int | None:
        return self.flight.fd if self.flight.has(start, stop) else None

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        flight, stop = self.flight, offset + size
        while True:
            # Asked again after the wait: the fetch may have started over, in a file full of holes.
            # What it has given up stays open, and another program may have made it shorter.
            while (fd := self.read_fd(offset, stop)) is None:
                await unless_interrupted(self._pid, lambda: flight.wait(offset, stop))
            with suppress(ShortFileError):
                return await self._reader.read(fd, offset, size, self.size)

    def close(self) -> None:
        self.flight.drop_reader()  # first: what is told of the close may look for room
        self._on_close()


class LostFile(OpenFile):
    """An image that an earlier worker had open and that cannot be read on: its fetch failed, or was
    cancelled. It is open still, until its last close."""

    direct = False

    def __init__(self, handle: int, on_close: Callable[[], None]) -> None:
        self.handle = handle
        self._on_close = on_close

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        raise CacheFSError("the image was lost, with the worker or before")

    def close(self) -> None:
        self._on_close()


class NamelessNode(Node):
    """An image that was opened while it was being fetched, by way of another process: it is known
    by its inode number only."""

    def __init__(self, file: ImageFile | LazyFile, inode: int, ownership: Ownership) -> None:
        self._file = file
        self._inode = inode
        self._ownership = ownership

    def attributes(self) -> Attributes:
        file = self._file
        return self._ownership.attributes(
            self._inode, file.size, private=file.private, modified=file.modified
        )

    async def open(self, caller: Caller, *, writing: bool) -> OpenFile:
        """By ``/proc/PID/fd/N``, say."""
        if writing:
            raise ReadOnlyError("images are read-only")
        if self._file.is_closed:  # the node was found in a thread
            raise StaleError(f"image number {split(self._inode)[1]} has been closed")
        return self._file


class LostNode(Node):
    """An image that is open and lost (:class:`LostFile`). How long it was nobody knows, and to say
    0 would make it an empty file to its readers; stale is nothing to say to an fstat(2)."""

    def __init__(self, inode: int) -> None:
        self._number = split(inode)[1]

    def attributes(self) -> Attributes:
        raise CacheFSError(f"image number {self._number} was lost, with the worker or before")

    async def open(self, caller: Caller, *, writing: bool) -> OpenFile:
        raise StaleError(f"image number {self._number} was lost")
