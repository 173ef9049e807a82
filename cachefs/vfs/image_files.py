"""Image files that are open: how they are opened, held and closed.

States of the file behind one inode, with what each has:

======== ===================================================== ===================================
absent   nothing                                               an open makes it open
open     a descriptor, and the lock that every evictor of      an eviction by this process makes it
         every process respects; the image has its name        held, the last close idle
held     the same, and a link in ``.cachefs/held``: its name   the last close makes it absent
         is going, or (an image under way) will be another.
         So its bytes are counted (:mod:`cachefs.cache.held`)
idle     a descriptor without the lock, for the next open      an open makes it open; a second, or
         (:mod:`cachefs.vfs.idle`)                             an eviction, absent
======== ===================================================== ===================================

The kinds of open files are in :mod:`cachefs.vfs.open_images`, those of images that are being
fetched are kept by :mod:`cachefs.vfs.lazy_files`.

A mount whose handles outlive its worker (*lasting*) needs three things of this: a handle's number
is its inode's, so that another process knows what it means; what is open while it loses its name is
held by a link; and an image that is being fetched is noted with its version, so that the fetch can
go on without asking the source. Without (the plain transport) files are held for their bytes to be
counted, and what a dead worker held is released by the next.

All in the event loop, where nothing is awaited between a look at a state and what is made of it;
but for :meth:`ImageFiles.hold`, which runs in the evicting thread. INVARIANT: of an open and an
eviction at the same time, one sees the other: the open enters its file into the registry and then
looks whether the image is leaving, the eviction marks it as leaving and then looks into the
registry."""

import dataclasses
import logging
import os
from collections import OrderedDict
from collections.abc import Callable

from cachefs.cache import Held, Kept, OpenImage, QuickStore
from cachefs.drivers import Entry, file_id, is_marked_private
from cachefs.errors import CacheFSError, ImageNotFoundError, IndexBusyError, StaleError
from cachefs.fetcher import Flight
from cachefs.kernel.descriptors import check_room
from cachefs.sources import SourceImage
from cachefs.vfs.hits import Hits
from cachefs.vfs.holding import Holding
from cachefs.vfs.idle import IdleFiles
from cachefs.vfs.in_threads import open_in_thread
from cachefs.vfs.inodes import NodeKind, join, split
from cachefs.vfs.lazy_files import LazyFiles
from cachefs.vfs.nodes import Caller, Node, Ownership
from cachefs.vfs.open_files import Grant, OpenFiles
from cachefs.vfs.open_images import ImageFile, LazyFile, LostFile, LostNode, NamelessNode
from cachefs.vfs.reader import Reader

log = logging.getLogger(__name__)

_REMEMBERED_IDS = 4096
"""Image numbers whose ID is remembered: more than a node has in use."""

FLIGHT_FILES = 9
"""Descriptors of an image that is being fetched: its file twice, its map, six connections."""

_LEAVING = 4096
"""Evicted images' numbers that are remembered: more than can be opened while they are evicted."""

_NOT_SIMPLE = os.O_WRONLY | os.O_RDWR | os.O_TRUNC


class ImageFiles:
    """The image files of one mount; for the transport it is its
    :class:`~cachefs.transport.backing.Backing`. *on_close* is called after the last close of each,
    when its room may be had."""

    def __init__(
        self,
        store: QuickStore,
        held: Held,
        files: OpenFiles,
        hits: Hits,
        *,
        lasting: bool,
        on_close: Callable[[], None] = lambda: None,
        ownership: Ownership = Ownership(),  # noqa: B008 - it is immutable
    ) -> None:
        self._store = store
        self._holding = Holding(held, lasting=lasting)
        self._files = files
        self._hits = hits
        self._on_close = on_close
        self._ownership = ownership
        self._reader = Reader()
        self._lazy = LazyFiles(self._holding, files, hits, self._reader, on_close=on_close)
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
        except (CacheFSError, OSError):  # the filesystem will say so
            return None
        return self._files.grant(file, nodeid)

    def opened(self, handle: int) -> Grant | None:
        """What is open under *handle*. See :meth:`cachefs.transport.backing.Backing.opened`."""
        return self._files.opened(handle)

    # Opening

    def cached(self, inode: int, image_id: str | None = None) -> ImageFile:
        """The open file of a cached image, opened if it is not, and a hit; *image_id* where the
        caller knows it. The caller counts its open at once (:meth:`OpenFiles.grant`). Raises
        StaleError where the image has gone, or is another by now, IndexBusyError where a thread
        has to open it: :meth:`cached_when_free`."""
        file = self._unchanged(inode) or self._open(inode, image_id)
        self._hits.count(file.entry.image_id)
        return file

    async def cached_when_free(self, inode: int, image_id: str, *, pid: int = 0) -> ImageFile:
        """As :meth:`cached`, where the index is locked, or the image's file has changed and is to
        be looked at. Cancellation, or an interruption of *pid*, only ends the waiting."""
        file = await self._open_in_thread(inode, image_id, pid=pid)
        # Nothing is awaited from here to the caller's grant: the last close of another reader
        # would close the file meanwhile.
        self._hits.count(file.entry.image_id)
        return file

    async def lazy(self, serial: int, flight: Flight, caller: Caller) -> LazyFile:
        """The open file of an image that is being fetched, once there is a file; the caller counts
        its open at once. Raises why there will be none. Cancellation only ends the waiting."""
        return await self._lazy.open(serial, flight, caller)

    def check_room(self, files: int = 1) -> None:
        """Raise OSError, EMFILE, where so many descriptors more cannot be had, idle files
        closed."""
        try:
            check_room(files)
        except OSError:
            self.idle.close()
            check_room(files)

    async def reopen(self, inode: int, image_id: str) -> ImageFile:
        """The file of a cached image that was opened through an earlier worker, which may have held
        it; no hit. Raises StaleError."""
        try:
            file = self._image_file(inode) or self._open(inode, image_id)
        except IndexBusyError:
            file = await self._open_in_thread(inode, image_id)
        file.held = True  # a link too many to look for harms nothing
        return file

    def open_held(
        self, inode: int, image_id: str = "", *, private: bool = False
    ) -> ImageFile | None:
        """The held file of an image that has lost its name, or has another number as a cached one;
        None where none is held. *image_id* is "" where nobody knows it any more; *private* as its
        note says, where there is one: what is written on the file counts, too."""
        fd = self._holding.open(inode)
        if fd is None:
            return None
        status = os.fstat(fd)
        entry = Entry(
            image_id,
            status.st_size,
            last_modified=status.st_mtime,
            private=private or is_marked_private(fd),
            inode=split(inode)[1],
            file=file_id(status),
        )
        file = self._enter(OpenImage(entry, fd), inode)
        file.held = True
        return file

    def lost(self, inode: int) -> LostFile:
        """What stands for an image that was open and cannot be opened again. The caller counts its
        opens at once."""
        return LostFile(inode, lambda: self._holding.release(inode))

    def keep(self, entry: Entry, *, lasts: bool) -> tuple[Callable[[], None], Kept | None]:
        """Keep a cached image open, so that it can be opened whatever becomes of it, until the
        function that is returned is called; no hit. Where it *lasts*, the next worker can open it,
        too, if it is told of what is returned besides. Raises StaleError where it has gone."""
        inode = join(NodeKind.CACHED, entry.inode)
        file = self._image_file(inode) or self._open(inode, entry.image_id)
        return self._files.keep(file), Kept(inode) if lasts and self._hold_open(file) else None

    # What is known of open images

    def remember(self, entry: Entry) -> None:
        """The name of a cached image has been looked up: its number may be asked for from now
        on."""
        inode = join(NodeKind.CACHED, entry.inode)
        if inode not in self._ids:
            self._ids[inode] = entry.image_id
            if len(self._ids) > _REMEMBERED_IDS:
                self._ids.popitem(last=False)

    def remembered(self, serial: int) -> str | None:
        """The ID of a cached image that had this number, if that is known still."""
        return self._ids.get(join(NodeKind.CACHED, serial))

    def entry(self, serial: int) -> Entry | None:
        """The record of an image that is open, cached still or evicted since."""
        file = self._image_file(join(NodeKind.CACHED, serial))
        return file.entry if file else None

    def nameless(self, inode: int) -> Node | None:
        """The node of an image that is open and of which nothing else is known: opened while it was
        being fetched, or lost."""
        grant = self._files.opened(inode)
        file = grant.file if grant else None
        if isinstance(file, LostFile):
            return LostNode(inode)
        if isinstance(file, ImageFile | LazyFile):  # asked in a thread, it may be closed by now
            return NamelessNode(file, inode, self._ownership)
        return None

    # What happens to images

    def hold(self, entry: Entry) -> None:
        """An image is about to be evicted, in the calling thread: if it is open, its file is
        held."""
        inode = join(NodeKind.CACHED, entry.inode)
        self._leaving[inode] = None
        if len(self._leaving) > _LEAVING:
            self._leaving.popitem(last=False)
        self.idle.drop(inode)
        while (file := self._image_file(inode)) is not None:
            file.held = True
            self._holding.keep(entry.image_id, inode)
            if self._files.opened(inode) is not None:
                break
            # Closed meanwhile; or opened again since, whose link this takes away: look again.
            self._holding.release(inode)

    def stayed(self, entry: Entry) -> None:
        """An image that was about to be evicted is cached still, in the calling thread. What is
        held of it stays so until its last close."""
        self._leaving.pop(join(NodeKind.CACHED, entry.inode), None)

    def flight_ended(self, flight: Flight) -> None:
        """A fetch has ended: what its readers have open is the image now, or nothing."""
        self._lazy.flight_ended(flight)

    def note(self, image: SourceImage, inode: int, *, complete: bool) -> None:
        """Write down for the next worker what is open as *inode*, and whether it was published."""
        self._holding.note(image, inode, complete=complete)

    # Inside

    def _image_file(self, inode: int) -> ImageFile | None:
        grant = self._files.opened(inode)
        return grant.file if grant and isinstance(grant.file, ImageFile) else None

    def _unchanged(self, inode: int) -> ImageFile | None:
        """The complete image that is open. Raises IndexBusyError where another program has changed
        its file since it was opened."""
        file = self._image_file(inode)
        if file is not None and not file.image.is_unchanged():
            raise IndexBusyError(f"image {file.entry.image_id!r} is to be checked")
        return file

    def _open(self, inode: int, image_id: str | None) -> ImageFile:
        image = self.idle.take(inode)
        if image is None:
            self.check_room()
            image_id = image_id or self._image_id(inode)
            try:
                image = self._store.open_image(image_id)
            except ImageNotFoundError as error:
                raise StaleError(str(error)) from error
        return self._opened(inode, image)

    async def _open_in_thread(self, inode: int, image_id: str, *, pid: int = 0) -> ImageFile:
        """Open the image in a thread. Another open may have done so meanwhile: then theirs it is,
        and its record what the thread has found."""
        waiting = self._store.waiting
        try:
            image = await open_in_thread(
                lambda: waiting.open_image(image_id), OpenImage.close, pid=pid
            )
        except ImageNotFoundError as error:
            raise StaleError(str(error)) from error
        file = self._image_file(inode)
        if file is not None and image.entry.inode == file.entry.inode:
            file.image = dataclasses.replace(file.image, entry=image.entry)
            image.close()
            return file
        if self._files.opened(inode) is not None:
            image.close()
            raise StaleError(f"image number {split(inode)[1]} was lost while it was open")
        return self._opened(inode, image)

    def _opened(self, inode: int, image: OpenImage) -> ImageFile:
        """Enter what was opened just now."""
        if join(NodeKind.CACHED, image.entry.inode) != inode:
            image.close()
            raise StaleError(f"image {image.entry.image_id!r} has been fetched anew")
        lost = self._files.opened(inode) is not None
        file = self._enter(image, inode)
        if lost:  # and found again: its readers, who got errors, go on
            file.held = True
            self._files.replace(file)
        # After it has entered, for hold() looks in the other order.
        if inode in self._leaving:
            self._hold_leaving(file)
        return file

    def _enter(self, image: OpenImage, inode: int) -> ImageFile:
        file = ImageFile(image, self._reader, inode, self._closed)
        self._files.enter(file)
        return file

    def _hold_open(self, file: ImageFile) -> bool:
        """Hold an open file beyond this worker; False where that cannot be done."""
        if file.held or not self._holding.lasting:
            return file.held
        try:
            file.held = self._holding.keep_open(file.fd, file.handle)
        except OSError as error:
            log.debug("the next worker will not know what is kept for an open: %s", error)
        return file.held

    def _hold_leaving(self, file: ImageFile) -> None:
        """Hold the file of an image that was opened while it was being evicted. Raises StaleError
        where that is too late."""
        file.held = True
        try:
            held = self._holding.keep_open(file.fd, file.handle)
        except OSError:
            self._refuse(file)
            raise
        if not held:
            self._refuse(file)
            raise StaleError(f"image {file.entry.image_id!r} has just been evicted")

    def _refuse(self, file: ImageFile) -> None:
        """Nothing comes of the open of a file that has entered."""
        grant = self._files.opened(file.handle)
        if grant is not None and not grant.opens:
            self._files.remove(grant)

    def _image_id(self, inode: int) -> str:
        """The image with this number: a number never means another one, so what was found once is
        remembered. Raises StaleError."""
        image_id = self._ids.get(inode)
        if image_id is None:
            entry = self._store.by_inode(split(inode)[1])
            if entry is None:
                raise StaleError(f"image number {split(inode)[1]} has been evicted")
            self.remember(entry)
            image_id = entry.image_id
        return image_id

    def _closed(self, file: ImageFile) -> None:
        """The last open of a complete image is closed; it has left the registry."""
        inode = file.handle
        leaving = inode in self._leaving
        if file.entry.image_id and not leaving:
            self._hits.closed(file.entry.image_id)  # least recently used is what was closed first
        if file.held:
            file.image.close()
            self._holding.release(inode)
        else:
            self.idle.keep(inode, file.image)
            if inode in self._leaving:  # hold() may have looked before
                self.idle.drop(inode)
        self._on_close()
