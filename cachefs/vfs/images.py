"""``images/``: one read-only file for each image, cached or yet to be fetched.

A cached image and the same image while it was fetched are two nodes with two inode numbers, because
an inode's pages and I/O mode are one thing for the kernel. Owns the nodes and what is remembered of
the source's answers; open files are :mod:`cachefs.vfs.image_files`'s, fetching is the fetcher's,
deciding the cache's."""

import stat
from dataclasses import dataclass

import trio

from cachefs.cache import QuickStore
from cachefs.drivers import Entry
from cachefs.errors import ImageExistsError, ImageNotFoundError, ReadOnlyError, StaleError
from cachefs.fetcher import Fetcher, Flight
from cachefs.image import State, check_image_id
from cachefs.sources import SourceImage
from cachefs.vfs.hits import Hits
from cachefs.vfs.image_files import FLIGHT_FILES, ImageFiles
from cachefs.vfs.inodes import IMAGES_INODE, NodeKind, Serials, join
from cachefs.vfs.nodes import (
    MAX_TIMEOUT,
    Attributes,
    Caller,
    Directory,
    Listed,
    Listing,
    Node,
    OpenFile,
)
from cachefs.vfs.waiting import unless_interrupted

NAME_TIMEOUT = 1.0
"""Seconds for which the kernel believes a name: as long may go by until it is seen that another
process evicted the image. What this daemon evicts it tells the kernel at once."""

ANSWER_TIMEOUT = 5.0
"""Seconds for which the source's description of an image is believed without a fetch of it."""

_FILE_MODE = stat.S_IFREG | 0o444


class CachedNode(Node):
    """``images/ID`` of a cached image."""

    def __init__(self, images: "Images", entry: Entry) -> None:
        self._images = images
        self.entry = entry

    def attributes(self) -> Attributes:
        entry = self.entry
        return Attributes(
            join(NodeKind.CACHED, entry.inode),
            _FILE_MODE,
            entry.size,
            mtime_ns=int(entry.last_modified * 1e9),
            atime_ns=int(entry.last_accessed * 1e9),
            entry_timeout=NAME_TIMEOUT,
            attr_timeout=MAX_TIMEOUT,
        )

    async def open(self, caller: Caller, *, writing: bool) -> OpenFile:
        if writing:
            raise ReadOnlyError("images are read-only")
        return self._images.open_cached(self.entry)

    def xattrs(self) -> dict[str, bytes]:
        entry = self._images.current(self.entry)
        return _xattrs(
            state=State.CACHED,
            hits=entry.hits,
            size=entry.size,
            checksum=entry.checksum or "",
            fetched=entry.fetched or "",
            last_accessed=entry.last_accessed,
            pinned=int(entry.pinned),
        )


@dataclass(slots=True)
class LazyNode(Node):
    """``images/ID`` of an image that is not cached: *flight* is None until it is opened."""

    images: "Images"
    image: SourceImage
    serial: int
    asked: float
    flight: Flight | None = None
    lookups: int = 0

    def attributes(self) -> Attributes:
        return Attributes(
            join(NodeKind.LAZY, self.serial),
            _FILE_MODE,
            self.image.size,
            entry_timeout=NAME_TIMEOUT,
            attr_timeout=MAX_TIMEOUT,
        )

    async def open(self, caller: Caller, *, writing: bool) -> OpenFile:
        if writing:
            raise ReadOnlyError("images are read-only")
        return await self.images.open_lazy(self, caller)

    def xattrs(self) -> dict[str, bytes]:
        fetching = self.flight is not None
        return _xattrs(
            state=State.INCOMPLETE if fetching else State.ABSENT,
            hits=self.flight.opens if self.flight else 0,
            size=self.image.size,
            checksum=self.image.digest or "",
            fetched="",
            last_accessed="",
            pinned=0,
        )


class Images(Directory):
    """The directory ``images/``. With *fetch_on_miss* a name that is not cached is asked of the
    source; without, it does not exist."""

    def __init__(
        self,
        store: QuickStore,
        fetcher: Fetcher,
        serials: Serials,
        files: ImageFiles,
        hits: Hits,
        *,
        fetch_on_miss: bool,
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._serials = serials
        self._fetch_on_miss = fetch_on_miss
        self._files = files
        self._hits = hits
        self._lazy: dict[int, LazyNode] = {}
        self._lazy_by_id: dict[str, LazyNode] = {}
        self.misses = 0

    def attributes(self) -> Attributes:
        return Attributes(
            IMAGES_INODE, stat.S_IFDIR | 0o555, entry_timeout=MAX_TIMEOUT, attr_timeout=MAX_TIMEOUT
        )

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        image_id = check_image_id(name)
        entry = self._store.get(image_id)
        if entry is not None:
            return CachedNode(self, entry)
        if not self._fetch_on_miss:
            raise ImageNotFoundError(f"image {image_id!r} is not cached")
        node = self._known(image_id)
        if node is None:
            image = await unless_interrupted(caller.pid, lambda: self._fetcher.stat(image_id))
            entry = self._store.get(image_id)  # it may have been published while we waited
            if entry is not None:
                return CachedNode(self, entry)
            node = self._known(image_id) or self._remember(image)
        node.lookups += 1
        return node

    async def open_listing(self) -> Listing:
        return self

    def page(self, position: int, limit: int) -> list[Listed]:
        entries = self._store.page(position, limit)
        return [
            Listed(entry.image_id, CachedNode(self, entry).attributes(), entry.inode)
            for entry in entries
        ]

    def listed(self, item: Listed) -> None:
        pass  # cached images are found by their number, nothing is remembered

    # Nodes by number

    def cached_node(self, serial: int) -> Node:
        """The node of a cached image, also of one evicted that is still open. Raises StaleError."""
        entry = self._store.by_inode(serial) or self._files.entry(serial)
        if entry is None:
            raise StaleError(f"image number {serial} has been evicted")
        return CachedNode(self, entry)

    def lazy_node(self, serial: int) -> Node:
        """The node of an image not cached. Raises StaleError."""
        try:
            return self._lazy[serial]
        except KeyError:
            raise StaleError(f"image number {serial} is forgotten") from None

    def forget_lazy(self, serial: int, lookups: int) -> None:
        """The kernel has dropped *lookups* references to a lazy node."""
        node = self._lazy.get(serial)
        if node is None:
            return
        node.lookups -= lookups
        if node.lookups <= 0:
            del self._lazy[serial]
            if self._lazy_by_id.get(node.image.image_id) is node:
                del self._lazy_by_id[node.image.image_id]

    def current(self, entry: Entry) -> Entry:
        """The record as it is now, hits of this moment included; *entry* of an evicted image."""
        self._hits.write()
        return self._store.by_inode(entry.inode) or entry

    # Opening

    def open_cached(self, entry: Entry) -> OpenFile:
        """Open a cached image, a hit. Raises StaleError where it has gone meanwhile."""
        return self._files.cached(join(NodeKind.CACHED, entry.inode), entry.image_id)

    async def open_lazy(self, node: LazyNode, caller: Caller) -> OpenFile:
        """Open an image that is not cached: fetch it, or join the fetch. Raises StaleError where it
        has been cached meanwhile, so that the kernel looks it up again, and why there can be no
        fetch of it (NoRoomError, say)."""
        image_id = node.image.image_id
        flight = node.flight
        if flight is None or flight.cancelled or flight.finished.is_set():
            if self._store.get(image_id) is not None or self._lazy_by_id.get(image_id) is not node:
                raise StaleError(f"image {image_id!r} is another by now")
            # Those under way have not all opened what they will.
            self._files.check_room(FLIGHT_FILES * (1 + len(self._fetcher.flights)))
            flight = self._fetcher.start(node.image)
            if flight.image != node.image:  # begun for another, who asked the source later
                raise StaleError(f"image {image_id!r} is being fetched in another version")
            node.flight = flight
        try:
            file = await self._files.lazy(node.serial, flight, caller)
        except ImageExistsError as error:  # another process was faster
            raise StaleError(str(error)) from error
        flight.count_hit()
        self.misses += 1
        return file

    def flight_ended(self, flight: Flight) -> list[int]:
        """A fetch has ended: its name means the cached image now, or is to be asked for again.
        Returns the inodes whose pages nobody may read any more, because it failed."""
        self._lazy_by_id.pop(flight.image.image_id, None)
        nodes = [node for node in self._lazy.values() if node.flight is flight]
        return [join(NodeKind.LAZY, node.serial) for node in nodes if flight.error is not None]

    # Inside

    def _known(self, image_id: str) -> LazyNode | None:
        """The node of an image under way, or of one the source has described just now."""
        flight = self._fetcher.flights.get(image_id)
        node = self._lazy_by_id.get(image_id)
        if flight is not None:
            if node is None or node.image != flight.image:
                node = self._remember(flight.image)
            node.flight = flight
        elif node is not None and trio.current_time() - node.asked > ANSWER_TIMEOUT:
            return None
        return node

    def _remember(self, image: SourceImage) -> LazyNode:
        """The node of this version of an image: the old one, if it is of the same version."""
        node = self._lazy_by_id.get(image.image_id)
        if node is not None and node.image == image:
            node.asked = trio.current_time()
            return node
        node = LazyNode(self, image, self._serials.next(), trio.current_time())
        self._lazy[node.serial] = node
        self._lazy_by_id[image.image_id] = node
        return node


def _xattrs(**values: object) -> dict[str, bytes]:
    return {f"user.cachefs.{name}": str(value).encode() for name, value in values.items()}
