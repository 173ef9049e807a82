"""Image files that are open: how they are opened, held and closed.

States of the file behind one inode, with what each has:

======== ===================================================== ===================================
absent   nothing                                               an open makes it open
open     a descriptor, and the lock that every evictor of      an eviction by this process makes it
         every process respects; the image has its name        held, the last close idle
held     the same, and a link in ``.cachefs/held``: its name   the last close makes it absent
         is going, or (an image under way) will be another
idle     a descriptor without the lock, for the next open      an open makes it open; a second, or
         (:mod:`cachefs.vfs.idle`)                             an eviction, absent
======== ===================================================== ===================================

A mount whose handles outlive its worker (*lasting*) needs three things of this: a handle's number
is its inode's, so that another process knows what it means; what is open while it loses its name is
held by a link; and an image that is being fetched is noted with its version, so that the fetch can
go on without asking the source. Without (the plain transport) nothing is ever held.

All in the event loop, where nothing is awaited between a look at a state and what is made of it;
but for :meth:`ImageFiles.hold`, which runs in the evicting thread. INVARIANT: of an open and an
eviction at the same time, one sees the other: the open enters its file into the registry and then
looks whether the image is leaving, the eviction marks it as leaving and then looks into the
registry."""

import dataclasses
import os
import stat
from collections import OrderedDict
from collections.abc import Callable

from cachefs.cache import Held, OpenImage, QuickStore
from cachefs.drivers import Entry
from cachefs.errors import CacheFSError, ImageNotFoundError, ReadOnlyError, StaleError
from cachefs.fetcher import Flight
from cachefs.kernel.descriptors import check_room
from cachefs.sources import SourceImage
from cachefs.vfs.hits import Hits
from cachefs.vfs.idle import IdleFiles
from cachefs.vfs.inodes import NodeKind, join, split
from cachefs.vfs.nodes import MAX_TIMEOUT, Attributes, Caller, Node, OpenFile
from cachefs.vfs.open_files import Grant, OpenFiles
from cachefs.vfs.reader import Reader
from cachefs.vfs.waiting import unless_interrupted

_REMEMBERED_IDS = 4096
"""Image numbers whose ID is remembered: more than a node has in use."""

FLIGHT_FILES = 6
"""Descriptors of an image that is being fetched: its file, its map, connections to the source."""

_LEAVING = 4096
"""Evicted images' numbers that are remembered: more than can be opened while they are evicted."""

COMPLETE = "complete"
"""The member of an image's note that says that it was published."""

_NOT_SIMPLE = os.O_WRONLY | os.O_RDWR | os.O_TRUNC


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
    interrupted (0: the transport sees to that). On a lasting mount it is held from the start."""

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
        self._reader = reader
        self._pid = pid
        self._on_close = on_close
        flight.add_reader()

    def read_fd(self, start: int, stop: int) -> int | None:
        return self.flight.fd if self.flight.has(start, stop) else None

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        flight, stop = self.flight, offset + size
        if not flight.has(offset, stop):
            await unless_interrupted(self._pid, lambda: flight.wait(offset, stop))
        return await self._reader.read(flight.fd, offset, size, self.size)

    def close(self) -> None:
        self._on_close()
        self.flight.drop_reader()


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

    def __init__(self, file: ImageFile | LazyFile, inode: int) -> None:
        self._file = file
        self._inode = inode

    def attributes(self) -> Attributes:
        return Attributes(
            self._inode, stat.S_IFREG | 0o444, self._file.size, attr_timeout=MAX_TIMEOUT
        )

    async def open(self, caller: Caller, *, writing: bool) -> OpenFile:
        """By ``/proc/PID/fd/N``, say."""
        if writing:
            raise ReadOnlyError("images are read-only")
        return self._file


class ImageFiles:
    """The image files of one mount; for the transport it is its
    :class:`~cachefs.transport.backing.Backing`."""

    def __init__(
        self, store: QuickStore, held: Held, files: OpenFiles, hits: Hits, *, lasting: bool
    ) -> None:
        self._store = store
        self._held = held
        self._files = files
        self._hits = hits
        self._lasting = lasting
        self._reader = Reader()
        self._leaving: OrderedDict[int, None] = OrderedDict()
        self._ids: OrderedDict[int, str] = OrderedDict()
        self.idle = IdleFiles()

    # For the transport

    def open(self, nodeid: int, flags: int) -> Grant | None:
        """Open a cached image; None where the open is not as simple as that, and the filesystem is
        to be asked. See :meth:`cachefs.transport.backing.Backing.open`."""
        if split(nodeid)[0] != NodeKind.CACHED or flags & _NOT_SIMPLE:
            return None
        try:
            file = self.cached(nodeid)
        except (StaleError, OSError):  # the filesystem will say so
            return None
        return self._files.grant(file, nodeid)

    def opened(self, handle: int) -> Grant | None:
        """What is open under *handle*. See :meth:`cachefs.transport.backing.Backing.opened`."""
        return self._files.opened(handle)

    # Opening

    def cached(self, inode: int, image_id: str | None = None) -> ImageFile:
        """The open file of a cached image, opened if it is not, and a hit; *image_id* where the
        caller knows it. The caller counts its open at once (:meth:`OpenFiles.grant`). Raises
        StaleError where the image has gone, or is another by now."""
        file = self._image_file(inode) or self._open(inode, image_id)
        self._hits.count(file.entry.image_id)
        return file

    async def lazy(self, serial: int, flight: Flight, caller: Caller) -> LazyFile:
        """The open file of an image that is being fetched, once there is a file; the caller counts
        its open at once. Raises why there will be none. Cancellation only ends the waiting."""
        inode = join(NodeKind.LAZY, serial)
        flight.add_reader()  # until the open file has counted itself
        try:
            await unless_interrupted(caller.pid, flight.begin)
            grant = self._files.opened(inode)
            if grant is not None and isinstance(grant.file, LazyFile):
                return grant.file
            return self._follow(flight, inode, caller.pid)
        finally:
            flight.drop_reader()

    def check_room(self, files: int = 1) -> None:
        """Raise OSError, EMFILE, where so many descriptors more cannot be had, idle files
        closed."""
        try:
            check_room(files)
        except OSError:
            self.idle.close()
            check_room(files)

    def reopen(self, inode: int, image_id: str) -> ImageFile:
        """The file of a cached image that was opened through an earlier worker, which may have held
        it; no hit. Raises StaleError."""
        file = self._image_file(inode) or self._open(inode, image_id)
        file.held = True  # a link too many to look for harms nothing
        return file

    def open_held(self, inode: int) -> ImageFile | None:
        """The held file of an image that has lost its name, or None where none is held."""
        fd = self._held.open(inode)
        if fd is None:
            return None
        entry = Entry("", os.fstat(fd).st_size, inode=split(inode)[1])
        file = self._enter(OpenImage(entry, fd), inode)
        file.held = True
        return file

    def lost(self, inode: int) -> LostFile:
        """What stands for an image that was open and cannot be opened again. The caller counts its
        opens at once."""
        return LostFile(inode, lambda: self._held.release(inode))

    # What is known of open images

    def entry(self, serial: int) -> Entry | None:
        """The record of an image that is open, cached still or evicted since."""
        file = self._image_file(join(NodeKind.CACHED, serial))
        return file.entry if file else None

    def nameless(self, serial: int) -> Node | None:
        """The node of an image that was opened while it was being fetched, if it is open."""
        inode = join(NodeKind.LAZY, serial)
        grant = self._files.opened(inode)
        file = grant.file if grant else None
        return NamelessNode(file, inode) if isinstance(file, ImageFile | LazyFile) else None

    # What happens to images

    def hold(self, entry: Entry) -> None:
        """An image is about to be evicted, in the calling thread: if it is open, its file is
        held."""
        inode = join(NodeKind.CACHED, entry.inode)
        self._leaving[inode] = None
        if len(self._leaving) > _LEAVING:
            self._leaving.popitem(last=False)
        self.idle.drop(inode)
        while self._lasting and (file := self._image_file(inode)) is not None:
            file.held = True
            self._held.keep(entry.image_id, inode)
            if self._files.opened(inode) is not None:
                break
            # Closed meanwhile; or opened again since, whose link this takes away: look again.
            self._held.release(inode)

    def flight_ended(self, flight: Flight) -> None:
        """A fetch has ended: what its readers have open is the image now, or nothing."""
        if flight.error is None and self._lasting:
            for grant in self._files:
                if isinstance(grant.file, LazyFile) and grant.file.flight is flight:
                    self.note(flight.image, grant.handle, complete=True)

    def note(self, image: SourceImage, inode: int, *, complete: bool) -> None:
        """Write down for the next worker what is open as *inode*, and whether it was published."""
        self._held.note(inode, dataclasses.asdict(image) | {COMPLETE: complete})

    # Inside

    def _image_file(self, inode: int) -> ImageFile | None:
        grant = self._files.opened(inode)
        return grant.file if grant and isinstance(grant.file, ImageFile) else None

    def _open(self, inode: int, image_id: str | None) -> ImageFile:
        if self._files.opened(inode) is not None:
            raise StaleError(f"image number {split(inode)[1]} was lost while it was open")
        image = self.idle.take(inode)
        if image is None:
            self.check_room()
            image_id = image_id or self._image_id(inode)
            try:
                image = self._store.open_image(image_id)
            except ImageNotFoundError as error:
                raise StaleError(str(error)) from error
        if join(NodeKind.CACHED, image.entry.inode) != inode:
            image.close()
            raise StaleError(f"image {image.entry.image_id!r} has been fetched anew")
        file = self._enter(image, inode)
        # After it has entered, for hold() looks in the other order.
        if inode in self._leaving and self._lasting:
            self._hold_leaving(file)
        return file

    def _enter(self, image: OpenImage, inode: int) -> ImageFile:
        file = ImageFile(image, self._reader, inode, self._closed)
        self._files.enter(file)
        return file

    def _hold_leaving(self, file: ImageFile) -> None:
        """Hold the file of an image that was opened while it was being evicted. Raises StaleError
        where that is too late."""
        file.held = True
        if not self._held.keep_open(file.fd, file.handle):
            grant = self._files.opened(file.handle)
            if grant is not None:
                self._files.remove(grant)
            raise StaleError(f"image {file.entry.image_id!r} has just been evicted")

    def _image_id(self, inode: int) -> str:
        """The image with this number: a number never means another one, so what was found once is
        remembered. Raises StaleError."""
        image_id = self._ids.get(inode)
        if image_id is None:
            entry = self._store.by_inode(split(inode)[1])
            if entry is None:
                raise StaleError(f"image number {split(inode)[1]} has been evicted")
            image_id = self._ids[inode] = entry.image_id
            if len(self._ids) > _REMEMBERED_IDS:
                self._ids.popitem(last=False)
        return image_id

    def _follow(self, flight: Flight, inode: int, pid: int) -> LazyFile:
        if not self._lasting:
            return LazyFile(flight, self._reader, pid=pid, handle=0, on_close=lambda: None)
        # Before the kernel hears of the open: the next worker must find the file, and what it is.
        self.note(flight.image, inode, complete=False)
        self._held.keep_open(flight.fd, inode)
        return LazyFile(
            flight,
            self._reader,
            pid=0,
            handle=inode,
            on_close=lambda: self._held.release(inode),
        )

    def _closed(self, file: ImageFile) -> None:
        """The last open of a complete image is closed; it has left the registry."""
        inode = file.handle
        if file.held:
            file.image.close()
            self._held.release(inode)
            return
        self.idle.keep(inode, file.image)
        if inode in self._leaving:  # hold() may have looked before
            self.idle.drop(inode)
