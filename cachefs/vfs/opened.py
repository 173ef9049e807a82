"""Image files that are open: shared by all who have the inode open, and taken up by the next
worker.

A mount whose handles outlive its daemon (*lasting*) needs three things, all here. A handle's number
is its inode's, so that another process knows what it means. What is open while it loses its name,
because it is published, evicted or fetched anew, is held by a link (:mod:`cachefs.cache.held`). And
an image that is being fetched is noted with its version, so that the fetch can go on without asking
the source.

INVARIANT: a held file is taken for an image only if it was published: the file of a fetch that
failed, or was cancelled, is full of holes."""

import dataclasses
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

from cachefs.cache import Held, OpenImage, QuickStore
from cachefs.drivers import Entry
from cachefs.errors import ImageNotFoundError, ReadOnlyError, StaleError
from cachefs.fetcher import Fetcher, Flight
from cachefs.image import Digest
from cachefs.sources import SourceImage
from cachefs.vfs.idle import IdleFiles
from cachefs.vfs.inodes import Room, join, split
from cachefs.vfs.nodes import MAX_TIMEOUT, NOBODY, Attributes, Caller, Node, OpenFile
from cachefs.vfs.reader import Reader
from cachefs.vfs.waiting import unless_interrupted

log = logging.getLogger(__name__)


_REMEMBERED_IDS = 4096
"""Image numbers whose ID is remembered: more than a node has in use."""

_LEAVING = 4096
"""Evicted images' numbers that are remembered: more than can be opened while they are evicted."""

_COMPLETE = "complete"
"""The member of an image's note that says that it was published."""

_NOT_SIMPLE = os.O_WRONLY | os.O_RDWR | os.O_TRUNC


class ImageFile(OpenFile):
    """A complete image, open; one for all who have that inode open."""

    direct = False

    def __init__(
        self, image: OpenImage, reader: Reader, inode: int, on_close: Callable[[], None]
    ) -> None:
        self.handle = inode
        self.image = image
        self.entry = image.entry
        self.fd = image.fd
        self._reader = reader
        self._on_close = on_close

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        return await self._reader.read(self.fd, offset, size, self.entry.size)

    def close(self) -> None:
        self._on_close()


class LazyFile(OpenFile):
    """An image that is being fetched, open; reads wait for their bytes, or until *pid* is
    interrupted (0: somebody else sees to that)."""

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
        self._reader = reader
        self._pid = pid
        self._on_close = on_close
        flight.add_reader()

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        flight, stop = self.flight, offset + size
        if not flight.has(offset, stop):
            await unless_interrupted(self._pid, lambda: flight.wait(offset, stop))
        return await self._reader.read(flight.fd, offset, size, flight.image.size)

    def close(self) -> None:
        self._on_close()
        self.flight.drop_reader()


class NamelessNode(Node):
    """An image that was opened while it was being fetched, by way of another process: it is known
    by its inode number only."""

    def __init__(self, file: OpenFile, inode: int, size: int) -> None:
        self._file = file
        self._inode = inode
        self._size = size

    def attributes(self) -> Attributes:
        return Attributes(self._inode, stat.S_IFREG | 0o444, self._size, attr_timeout=MAX_TIMEOUT)

    async def open(self, caller: Caller, *, writing: bool) -> OpenFile:
        """By ``/proc/PID/fd/N``, say."""
        if writing:
            raise ReadOnlyError("images are read-only")
        return self._file


class OpenImages:
    """The open images of one mount, by inode number. For the event loop, but for :meth:`hold`."""

    def __init__(self, store: QuickStore, held: Held, fetcher: Fetcher, *, lasting: bool) -> None:
        self._store = store
        self._held_files = held
        self._fetcher = fetcher
        self._lasting = lasting
        self._reader = Reader()
        self._cached: dict[int, ImageFile] = {}
        self._here: dict[int, int] = {}
        self._elsewhere: set[int] = set()
        self._held: set[int] = set()
        self.idle = IdleFiles()
        self._leaving: OrderedDict[int, None] = OrderedDict()
        self._ids: OrderedDict[int, str] = OrderedDict()
        self.hits = 0
        self._lazy: dict[int, LazyFile] = {}

    def cached(self, entry: Entry) -> ImageFile:
        """The open file of a cached image, opened if it is not, until it is closed. Raises
        StaleError where the image has gone, or is another by now."""
        file = self._open(entry.image_id, join(Room.CACHED, entry.inode))
        self._elsewhere.add(file.handle)
        return file

    def count_hit(self, image_id: str) -> None:
        """Somebody has opened a cached image."""
        self._store.hit(image_id)
        self.hits += 1

    def _open(self, image_id: str, inode: int) -> ImageFile:
        file = self._cached.get(inode)
        if file is not None:
            return file
        try:
            image = self.idle.take(inode) or self._store.open_image(image_id)
        except ImageNotFoundError as error:
            raise StaleError(str(error)) from error
        if join(Room.CACHED, image.entry.inode) != inode:
            image.close()
            raise StaleError(f"image {image_id!r} has been fetched anew")
        file = self._add(image, inode)
        # After it was added, for hold() looks in the other order: one of us sees the other.
        if inode in self._leaving:
            self._hold_leaving(file, image_id)
        return file

    def _hold_leaving(self, file: ImageFile, image_id: str) -> None:
        """Hold the file of an image that was opened while it was being evicted. Raises StaleError
        where that is too late."""
        if not self._lasting:
            return
        self._held.add(file.handle)
        if not self._held_files.keep_open(file.fd, file.handle):
            self._close_unless_open(file.handle)
            raise StaleError(f"image {image_id!r} has just been evicted")

    def _image_id(self, inode: int) -> str | None:
        """The image with this number, cached still or not: a number never means another one, so
        what was found once is remembered."""
        image_id = self._ids.get(inode)
        if image_id is None:
            entry = self._store.by_inode(split(inode)[1])
            if entry is None:
                return None
            image_id = self._ids[inode] = entry.image_id
            if len(self._ids) > _REMEMBERED_IDS:
                self._ids.popitem(last=False)
        return image_id

    def entry(self, serial: int) -> Entry | None:
        """What is known of an image that is open, cached still or evicted since."""
        file = self._cached.get(join(Room.CACHED, serial))
        return file.entry if file else None

    async def lazy(self, serial: int, flight: Flight, caller: Caller) -> LazyFile:
        """The open file of an image that is being fetched, once there is a file. Raises why there
        will be none."""
        inode = join(Room.LAZY, serial)
        flight.add_reader()  # until the open file has counted itself
        try:
            await unless_interrupted(caller.pid, flight.begin)
            file = self._lazy.get(inode)
            if file is None:
                file = self._follow(flight, inode, caller.pid)
            return file
        finally:
            flight.drop_reader()

    def hold(self, entry: Entry) -> None:
        """An image is about to be evicted, in whatever thread: if it is open, its file is held."""
        inode = join(Room.CACHED, entry.inode)
        self._leaving[inode] = None
        if len(self._leaving) > _LEAVING:
            self._leaving.popitem(last=False)
        self.idle.drop(inode)
        if self._lasting and inode in self._cached:
            self._held.add(inode)
            self._held_files.keep(entry.image_id, inode)
            if inode not in self._cached:  # closed meanwhile
                self._held_files.release(inode)

    def backing_fd(self, nodeid: int, fh: int) -> int | None:
        """The descriptor of a complete image that is open, for the kernel to read from by itself
        (this is :class:`cachefs.transport.backing.Backing`, which lies above)."""
        del fh  # the same number, for images
        file = self._cached.get(nodeid)
        return file.fd if file else None

    def read_fd(self, nodeid: int, fh: int, start: int, stop: int) -> int | None:
        """The descriptor of a file that has [*start*, *stop*) of an open image: all of them for a
        complete one, those that have arrived for one that is being fetched."""
        lazy = self._lazy.get(nodeid)
        if lazy is not None:
            return lazy.flight.fd if lazy.flight.has(start, stop) else None
        return self.backing_fd(nodeid, fh)

    def open_here(self, nodeid: int, flags: int) -> int | None:
        """Open a cached image for the relay; its number, or None where the open is not as simple as
        that and the filesystem is to be asked."""
        if split(nodeid)[0] != Room.CACHED or not self._lasting or flags & _NOT_SIMPLE:
            return None
        file = self._cached.get(nodeid)
        if file is None:
            image_id = self._image_id(nodeid)
            if image_id is None:
                return None
            try:
                file = self._open(image_id, nodeid)
            except StaleError:
                return None
        self._here[nodeid] = self._here.get(nodeid, 0) + 1
        return nodeid

    def opened_here(self, nodeid: int) -> None:
        """Count the hit of what :meth:`open_here` has opened: its reader goes on meanwhile."""
        self.count_hit(self._cached[nodeid].entry.image_id)

    def release_here(self, nodeid: int, fh: int) -> bool:
        """Close what :meth:`open_here` has opened; whether it had."""
        del fh
        opens = self._here.get(nodeid, 0)
        if opens > 1:
            self._here[nodeid] = opens - 1
        elif opens:
            del self._here[nodeid]
            self._close_unless_open(nodeid)
        return opens > 0

    # Taking up what another process had open

    async def take_up(self, inode: int) -> OpenFile | None:
        """Open again what a worker before this one had open; None where it was no image, or one
        whose fetch had failed or was cancelled. Raises why a fetch cannot go on."""
        room = split(inode)[0]
        self._held.add(inode)  # maybe; a link too many to look for harms nobody
        if room == Room.CACHED:
            entry = self._store.by_inode(split(inode)[1])
            return self.cached(entry) if entry else self._open_held(inode)
        members = self._held_files.noted(inode) if room == Room.LAZY else None
        if members is None:
            return None
        complete = members.pop(_COMPLETE, False)
        image = _image(members)
        if not complete and self._held_files.is_incomplete(inode, image.image_id):
            flight = self._fetcher.start(image)
            if flight.image != image:
                raise StaleError(f"image {image.image_id!r} is being fetched in another version")
            return await self.lazy(split(inode)[1], flight, NOBODY)
        if not complete:
            # Killed between the publication and the note of it, or it never was published.
            if not self._held_files.is_published(inode, image.image_id):
                return None
            self._note(image, inode, complete=True)
        return self._open_held(inode)

    def drop_others(self, inodes: Collection[int]) -> None:
        """Release what no kernel has open: left by a worker that was killed in an open."""
        self._held_files.keep_only(inodes)

    def flight_ended(self, flight: Flight) -> None:
        """A fetch has ended: what its readers have open is the image now, or nothing."""
        if flight.error is None:
            for inode, file in self._lazy.items():
                if file.flight is flight and self._lasting:
                    self._note(flight.image, inode, complete=True)

    def nameless(self, serial: int) -> Node | None:
        """The node of an image that was opened while it was being fetched, if it is open."""
        inode = join(Room.LAZY, serial)
        cached, lazy = self._cached.get(inode), self._lazy.get(inode)
        if cached is not None:
            return NamelessNode(cached, inode, cached.entry.size)
        return NamelessNode(lazy, inode, lazy.flight.image.size) if lazy else None

    def _open_held(self, inode: int) -> OpenFile | None:
        fd = self._held_files.open(inode)
        if fd is None:
            return None
        self._elsewhere.add(inode)
        return self._add(
            OpenImage(Entry("", os.fstat(fd).st_size, inode=split(inode)[1]), fd), inode
        )

    # Inside

    def _add(self, image: OpenImage, inode: int) -> ImageFile:
        file = ImageFile(image, self._reader, inode, lambda: self._closed_elsewhere(inode))
        self._cached[inode] = file
        return file

    def _follow(self, flight: Flight, inode: int, pid: int) -> LazyFile:
        if not self._lasting:
            return LazyFile(flight, self._reader, pid=pid, handle=0, on_close=lambda: None)
        # Before the kernel hears of the open: the next worker must find the file, and what it is.
        self._note(flight.image, inode, complete=False)
        self._held_files.keep_open(flight.fd, inode)
        self._lazy[inode] = file = LazyFile(
            flight,
            self._reader,
            pid=0,
            handle=inode,
            on_close=lambda: self._closed_lazy(inode),
        )
        return file

    def _note(self, image: SourceImage, inode: int, *, complete: bool) -> None:
        self._held_files.note(inode, dataclasses.asdict(image) | {_COMPLETE: complete})

    def _closed_elsewhere(self, inode: int) -> None:
        self._elsewhere.discard(inode)
        self._close_unless_open(inode)

    def _close_unless_open(self, inode: int) -> None:
        if inode in self._here or inode in self._elsewhere:
            return
        file = self._cached.pop(inode)
        if inode in self._held:
            file.image.close()
            self._held.discard(inode)
            self._held_files.release(inode)
            return
        self.idle.keep(inode, file.image)
        if inode in self._leaving:  # hold() may have looked before
            self.idle.drop(inode)

    def _closed_lazy(self, inode: int) -> None:
        self._lazy.pop(inode, None)
        self._held_files.release(inode)


def _image(members: dict[str, Any]) -> SourceImage:
    """What :func:`dataclasses.asdict` made of a SourceImage, as one again."""
    digest = members["digest"]
    return SourceImage(**{**members, "digest": Digest(**digest) if digest else None})
