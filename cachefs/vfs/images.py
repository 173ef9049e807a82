"""``images/``: one read-only file for each image, cached or yet to be fetched.

A cached image and the same image while it was fetched are two nodes with two inode numbers, because
an inode's pages and I/O mode are one thing for the kernel. Owns the nodes and what is remembered of
the source's answers; open files are :mod:`cachefs.vfs.image_files`'s, fetching is the fetcher's,
deciding the cache's.

INVARIANT: a number stands for one version of an image, for ever. Where it can be opened no more it
is stale, and the kernel looks the name up again; what it finds then is kept for the open that
follows (:mod:`cachefs.vfs.expected`), so no reader ever gets ESTALE."""

import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import trio

from cachefs.cache import Kept, QuickStore
from cachefs.drivers import Entry
from cachefs.errors import (
    ImageExistsError,
    ImageNotFoundError,
    IndexBusyError,
    ReadOnlyError,
    StaleError,
    without_traceback,
)
from cachefs.fetcher import Fetcher, Flight
from cachefs.image import State, check_image_id
from cachefs.sources import SourceImage
from cachefs.vfs.expected import Expected
from cachefs.vfs.hits import Hits
from cachefs.vfs.image_files import FLIGHT_FILES, ImageFiles
from cachefs.vfs.in_threads import at_once_or, in_thread
from cachefs.vfs.inodes import IMAGES_INODE, NodeKind, Serials, join
from cachefs.vfs.names import NAME_TIMEOUT, Names
from cachefs.vfs.nodes import (
    MAX_TIMEOUT,
    Attributes,
    Caller,
    Directory,
    Listed,
    Listing,
    Node,
    OpenFile,
    Ownership,
)
from cachefs.vfs.waiting import unless_interrupted

ANSWER_TIMEOUT = 5.0
"""Seconds for which the source's description of an image is believed without a fetch of it."""


_UNKNOWN = 2**62
"""A number of references that the kernel never comes to the end of."""


class CachedNode(Node):
    """``images/ID`` of a cached image."""

    def __init__(self, images: "Images", entry: Entry) -> None:
        self._images = images
        self.entry = entry

    def attributes(self) -> Attributes:
        entry = self.entry
        return self._images.ownership.attributes(
            join(NodeKind.CACHED, entry.inode),
            entry.size,
            private=entry.private,
            modified=entry.last_modified,
            accessed=entry.last_accessed,
            entry_timeout=NAME_TIMEOUT,
        )

    async def open(self, caller: Caller, *, writing: bool) -> OpenFile:
        if writing:
            raise ReadOnlyError("images are read-only")
        return await self._images.open_cached(self.entry, caller)

    async def xattrs(self) -> dict[str, bytes]:
        entry = await self._images.current(self.entry)
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
    """``images/ID`` of an image that is not cached: *flight* is None until it is opened.

    INVARIANT: a node has one flight and no other after it, for its readers share one open file."""

    images: "Images"
    image: SourceImage
    serial: int
    asked: float
    flight: Flight | None = None
    lookups: int = 0

    def attributes(self) -> Attributes:
        return self.images.ownership.attributes(
            join(NodeKind.LAZY, self.serial),
            self.image.size,
            private=self.image.private,
            modified=self.image.modified,
            entry_timeout=NAME_TIMEOUT,
        )

    async def open(self, caller: Caller, *, writing: bool) -> OpenFile:
        if writing:
            raise ReadOnlyError("images are read-only")
        return await self.images.open_lazy(self, caller)

    async def xattrs(self) -> dict[str, bytes]:
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
        expected: Expected,
        fetch_on_miss: bool,
        ownership: Ownership = Ownership(),  # noqa: B008 - it is immutable
    ) -> None:
        self.ownership = ownership
        self.expected = expected
        self.names = Names()
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
        cached = await self._cached(image_id)
        if cached is not None:
            return cached
        if not self._fetch_on_miss:
            raise ImageNotFoundError(f"image {image_id!r} is not cached")
        node = self._known(image_id)
        if node is None:
            with self.names.looking():
                image = await unless_interrupted(caller.pid, lambda: self._fetcher.stat(image_id))
            cached = await self._cached(image_id)
            if cached is not None:
                return cached
            node = self._known(image_id) or self._remember(image)
        if self.expected.was_refused(image_id):
            node = self._kept(node)
        node.lookups += 1
        return node

    def _kept(self, node: LazyNode) -> LazyNode:
        """The node, or that of the version that is being fetched; its fetch is begun, and kept for
        the open that follows."""
        try:
            self._keep(node)
        except StaleError:
            node = self._known(node.image.image_id) or node
            self._keep(node)
        return node

    def _keep(self, node: LazyNode, forget: Callable[[], object] = lambda: None) -> None:
        flight = self._flight(node)
        flight.insist()
        flight.add_reader()

        def release() -> None:
            forget()
            flight.drop_reader()

        kept = Kept(join(NodeKind.LAZY, node.serial), asdict(node.image))
        self.expected.keep(release, kept)

    def keep_for_open(self, serial: int, image: SourceImage) -> None:
        """Have a node again that the kernel has looked up through an earlier worker, and is about
        to open: its fetch is begun. Raises why it cannot be.

        How many references the kernel has to it nobody knows. So it lasts for as long as it is
        kept, whatever the kernel forgets, and no look-up finds it: else the kernel, forgetting
        those of the earlier worker, would have it gone with one that it has just been given."""
        node = LazyNode(self, image, serial, trio.current_time(), lookups=_UNKNOWN)
        self._keep(node, lambda: self._lazy.pop(serial, None))
        self._lazy[serial] = node

    async def _cached(self, image_id: str) -> CachedNode | None:
        """The node of an image if it is cached; kept open where the kernel is to open it next."""
        while (entry := await self._recorded(image_id)) is not None:
            self._files.remember(entry)
            if self.expected.expects(image_id):
                try:
                    lasts = self.expected.was_refused(image_id)
                    self.expected.keep(*self._files.keep(entry, lasts=lasts))
                except StaleError:  # it has just been evicted: look again
                    continue
                except IndexBusyError:
                    with suppress(ImageNotFoundError):
                        await in_thread(lambda: self._store.waiting.open_image(image_id).close())
                    continue
            return CachedNode(self, entry)
        return None

    async def open_listing(self) -> Listing:
        return self

    async def page(self, position: int, limit: int) -> list[Listed]:
        quick = self._store
        entries = await at_once_or(
            lambda: quick.page(position, limit), lambda: quick.waiting.page(position, limit)
        )
        return [
            Listed(entry.image_id, CachedNode(self, entry).attributes(), entry.inode)
            for entry in entries
        ]

    def listed(self, item: Listed) -> None:
        pass  # cached images are found by their number, nothing is remembered

    # Nodes by number

    def cached_node(self, serial: int) -> Node:
        """The node of a cached image, also of one evicted that is still open. Raises StaleError,
        and IndexBusyError."""
        return self._node(serial, self._store.by_inode(serial))

    def cached_node_in_thread(self, serial: int) -> Node:
        """As :meth:`cached_node`, and waits for the index."""
        return self._node(serial, self._store.waiting.by_inode(serial))

    def _node(self, serial: int, entry: Entry | None) -> Node:
        entry = entry or self._files.entry(serial)
        if entry is not None:
            return CachedNode(self, entry)
        node = self._files.nameless(join(NodeKind.CACHED, serial))
        if node is None:
            raise StaleError(f"image number {serial} has been evicted")
        return node

    def lazy_node(self, serial: int) -> Node:
        """The node of an image not cached, or that was not when it was opened. Raises
        StaleError."""
        node = self._lazy.get(serial) or self._files.nameless(join(NodeKind.LAZY, serial))
        if node is None:
            raise StaleError(f"image number {serial} is forgotten")
        return node

    def cached_refused(self, serial: int) -> None:
        """What was asked of a cached image was refused as stale."""
        self.expected.refused(self._files.remembered(serial))

    def lazy_refused(self, serial: int) -> None:
        """What was asked of an image that was not cached was refused as stale."""
        node = self._lazy.get(serial)
        self.expected.refused(node.image.image_id if node else None)

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

    async def current(self, entry: Entry) -> Entry:
        """The record as it is now, hits of this moment included; *entry* of an evicted image."""
        hits, store, number = self._hits, self._store, entry.inode
        now = await at_once_or(
            lambda: hits.shown(lambda: store.by_inode(number), wait=False),
            lambda: hits.shown(lambda: store.waiting.by_inode(number), wait=True),
        )
        return now or entry

    # Opening

    async def open_cached(self, entry: Entry, caller: Caller) -> OpenFile:
        """Open a cached image, a hit. Raises StaleError where it has gone meanwhile."""
        inode = join(NodeKind.CACHED, entry.inode)
        try:
            return self._files.cached(inode, entry.image_id)
        except IndexBusyError:
            return await self._files.cached_when_free(inode, entry.image_id, pid=caller.pid)

    async def open_lazy(self, node: LazyNode, caller: Caller) -> OpenFile:
        """Open an image that is not cached: fetch it, or join the fetch. Raises StaleError where it
        has been cached meanwhile, so that the kernel looks it up again, and why there can be no
        fetch of it (NoRoomError, say)."""
        image_id = node.image.image_id
        flight = node.flight
        if flight is None or not flight.can_be_joined:
            cached = await self._recorded(image_id)
            if cached is not None or self._current(image_id) is not node:
                flight = node.flight
                if flight is not None and flight.error is not None and self._is_second(image_id):
                    raise without_traceback(flight.error)
                raise StaleError(f"image {image_id!r} is another by now")
            flight = self._flight(node)  # nothing is awaited before it is the node's
        try:
            file = await self._files.lazy(node.serial, flight, caller)
        except ImageExistsError as error:  # another process was faster
            raise StaleError(str(error)) from error
        flight.count_hit()
        self.misses += 1
        return file

    def flight_ended(self, flight: Flight) -> list[int]:
        """A fetch has ended: its name means the cached image now, or is to be asked for again, but
        where a newer fetch has begun. Returns the inodes whose pages nobody may read any more,
        because it failed."""
        named = self._lazy_by_id.get(flight.image.image_id)
        if named is not None and named.flight in (None, flight):
            del self._lazy_by_id[flight.image.image_id]
        nodes = [node for node in self._lazy.values() if node.flight is flight]
        return [join(NodeKind.LAZY, node.serial) for node in nodes if flight.error is not None]

    # Inside

    async def _recorded(self, image_id: str) -> Entry | None:
        return await at_once_or(
            lambda: self._store.get(image_id), lambda: self._store.waiting.get(image_id)
        )

    def _flight(self, node: LazyNode) -> Flight:
        """The fetch of a current node's version. Raises StaleError where another version is
        fetched."""
        if node.flight is None:
            # Those under way have not all opened what they will.
            self._files.check_room(FLIGHT_FILES * (1 + len(self._fetcher.flights)))
            flight = self._fetcher.start(node.image)
            if not is_same_version(flight.image, node.image):
                # begun for another, who asked the source later
                raise StaleError(f"image {node.image.image_id!r} is fetched in another version")
            node.flight = flight
        return node.flight

    def _is_second(self, image_id: str) -> bool:
        """Whether a stale answer to an open would be the second to its reader."""
        return self.expected.was_refused(image_id)

    def _current(self, image_id: str) -> LazyNode | None:
        """The node that the name means, unless its fetch is over: cancelled, say, and not ended."""
        node = self._lazy_by_id.get(image_id)
        over = node is not None and node.flight is not None and not node.flight.can_be_joined
        return None if over else node

    def _known(self, image_id: str) -> LazyNode | None:
        """The node of an image under way, or of one the source has described just now."""
        flight = self._fetcher.flights.get(image_id)
        node = self._current(image_id)
        if flight is not None and flight.can_be_joined:
            of_this = node is not None and node.flight in (None, flight)
            if node is None or not of_this or not is_same_version(node.image, flight.image):
                node = self._remember(flight.image)
            node.flight = flight
        elif node is not None and trio.current_time() - node.asked > ANSWER_TIMEOUT:
            return None
        return node

    def _remember(self, image: SourceImage) -> LazyNode:
        """The node of this version of an image: the old one, if it is of the same version and was
        never opened."""
        node = self._lazy_by_id.get(image.image_id)
        if node is not None and node.image == image and node.flight is None:
            node.asked = trio.current_time()
            return node
        node = LazyNode(self, image, self._serials.next(), trio.current_time())
        self._lazy[node.serial] = node
        self._lazy_by_id[image.image_id] = node
        return node


def is_same_version(one: SourceImage, other: SourceImage) -> bool:
    """Whether both describe the same bytes, for the same users: by their digest where both have
    one, else by all that one source says, but for its date where it has a name for the version."""
    if one.private != other.private:  # the kernel believes a number's mode for good
        return False
    if one.size != other.size or one.source != other.source:
        return one.size == other.size and one.digest is not None and one.digest == other.digest
    if one.digest is not None and other.digest is not None:
        return one.digest == other.digest
    named = one.version is not None
    return replace(one, modified=None) == replace(other, modified=None) if named else one == other


def _xattrs(**values: object) -> dict[str, bytes]:
    return {f"user.cachefs.{name}": str(value).encode() for name, value in values.items()}
