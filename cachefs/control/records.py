"""Control directories: one file for each image in a state, which shows the image's record.

A directory is declared (:class:`Records`) in :mod:`cachefs.control.table`. Making a file in it and
removing one are the operator's verbs; that the file is there is a matter of the image's state."""

import stat
from collections.abc import Callable
from dataclasses import dataclass

import trio

from cachefs.cache import QuickStore, Waiting
from cachefs.control.files import act, decode
from cachefs.control.operator import Operator
from cachefs.drivers import Entry
from cachefs.errors import (
    ImageNotFoundError,
    InvalidValueError,
    NotPermittedError,
    StaleError,
)
from cachefs.image import ImageRecord, check_image_id
from cachefs.vfs.in_threads import at_once_or
from cachefs.vfs.inodes import Names, Serials, join
from cachefs.vfs.nodes import (
    Attributes,
    Caller,
    Directory,
    Listed,
    Listing,
    Node,
    OpenFile,
)


@dataclass(frozen=True, slots=True)
class Records:
    """A directory of records. *record* finds an image's, None where it is not in this state; *ids*
    lists them, or *page* does, by driver's number, where there may be very many; *create* and
    *remove* are what ``touch ID`` and ``rm ID`` do, *store* takes what is written to one. All
    run in threads but *page*, which runs in the event loop."""

    name: str
    doc: str
    record: Callable[[Operator, str], ImageRecord | None]
    ids: Callable[[Operator], list[str]] | None = None
    page: Callable[[QuickStore | Waiting, int, int], list[Entry]] | None = None
    create: Callable[[Operator, str], None] | None = None
    remove: Callable[[Operator, str], None] | None = None
    store: Callable[[Operator, str, str], None] | None = None
    syntax: str = ""


class RecordDirectory(Directory):
    """The node of a declared directory; *kind* is that of its files."""

    def __init__(
        self,
        declared: Records,
        operator: Operator,
        *,
        inode: int,
        kind: int,
        serials: Serials,
        gid: int | None,
    ) -> None:
        self.declared = declared
        self.operator = operator
        self.kind = kind
        self.names = Names(serials)
        changeable = declared.create is not None or declared.remove is not None
        group = 0o020 if gid is not None else 0
        mode = 0o555 | (0o200 | group if changeable else 0)
        self._attributes = Attributes(inode, stat.S_IFDIR | mode, gid=gid, entry_timeout=60)
        self.file_mode = stat.S_IFREG | 0o444 | (0o200 | group if declared.create else 0)

    def attributes(self) -> Attributes:
        return self._attributes

    def node(self, image_id: str) -> "RecordNode":
        """The node of an image's record, whether the image is in this state or not."""
        return RecordNode(self, image_id, self.names.serial(image_id))

    def find(self, serial: int) -> Node:
        """The node of a serial. Raises StaleError."""
        image_id = self.names.key(serial)
        if image_id is None:
            raise StaleError("this record is forgotten")
        return RecordNode(self, image_id, serial)

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        image_id = check_image_id(name)
        await self.record(image_id)
        return self._looked_up(image_id)

    async def record(self, image_id: str) -> ImageRecord:
        """The image's record. Raises ImageNotFoundError where it is not in this state."""
        record = await trio.to_thread.run_sync(self.declared.record, self.operator, image_id)
        if record is None:
            raise ImageNotFoundError(f"image {image_id!r} is not in {self.declared.name}/")
        return record

    async def open_listing(self) -> Listing:
        if self.declared.ids is None:
            return PagedListing(self)
        return SnapshotListing(
            self, await trio.to_thread.run_sync(self.declared.ids, self.operator)
        )

    async def create(self, name: bytes, caller: Caller) -> tuple[Node, OpenFile]:
        image_id = check_image_id(name)
        if self.declared.create is None:
            raise NotPermittedError(f"nothing can be made in {self.declared.name}/")
        await act(self.declared.create, self.operator, image_id)
        return self._looked_up(image_id), OpenRecord(self, image_id)

    async def unlink(self, name: bytes) -> None:
        image_id = check_image_id(name)
        if self.declared.remove is None:
            raise NotPermittedError(f"nothing can be removed from {self.declared.name}/")
        await act(self.declared.remove, self.operator, image_id)

    def _looked_up(self, image_id: str) -> Node:
        node = self.node(image_id)
        self.names.looked_up(node.serial)
        return node


@dataclass(frozen=True, slots=True)
class RecordNode(Node):
    """The file of one image in a record directory."""

    directory: RecordDirectory
    image_id: str
    serial: int

    def attributes(self) -> Attributes:
        directory = self.directory
        return Attributes(
            join(directory.kind, self.serial),
            directory.file_mode,
            gid=directory.attributes().gid,
        )

    async def open(self, caller: Caller, *, writing: bool) -> OpenFile:
        if not writing:
            await self.directory.record(self.image_id)
        return OpenRecord(self.directory, self.image_id)

    def truncate(self) -> None:
        """Nothing to empty; refused where ``touch`` would be."""
        if self.directory.declared.create is None:
            raise NotPermittedError(f"records in {self.directory.declared.name}/ are read-only")

    def touch(self) -> None:
        """``touch`` has done its work by making the file."""


class OpenRecord(OpenFile):
    """A record, open: one JSON object on one line."""

    def __init__(self, directory: RecordDirectory, image_id: str) -> None:
        self._directory = directory
        self._image_id = image_id
        self._shown = b""

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        if offset == 0:
            record = await self._directory.record(self._image_id)
            self._shown = record.as_json().encode()
        return self._shown[offset : offset + size]

    async def write(self, offset: int, data: bytes) -> int:
        text = decode(data).strip()
        declared = self._directory.declared
        if text and declared.store is None:
            raise InvalidValueError("this record takes no text; touch is enough")
        if text and declared.store is not None:
            await act(declared.store, self._directory.operator, self._image_id, text)
        return len(data)


class SnapshotListing:
    """The names there were when the directory was opened, so that none is listed twice or
    skipped."""

    def __init__(self, directory: RecordDirectory, ids: list[str]) -> None:
        self._directory = directory
        self._ids = ids

    async def page(self, position: int, limit: int) -> list[Listed]:
        """The next names; the position is their number."""
        return [
            Listed(image_id, self._directory.node(image_id).attributes(), number)
            for number, image_id in enumerate(self._ids[position : position + limit], position + 1)
        ]

    def listed(self, item: Listed) -> None:
        """The kernel holds a reference."""
        names = self._directory.names
        names.looked_up(names.serial(item.name))


class PagedListing(SnapshotListing):
    """Names in the order of the driver's numbers, read page by page."""

    def __init__(self, directory: RecordDirectory) -> None:
        super().__init__(directory, [])

    async def page(self, position: int, limit: int) -> list[Listed]:
        directory = self._directory
        page, quick = directory.declared.page, directory.operator.quick
        assert page is not None
        entries = await at_once_or(
            lambda: page(quick, position, limit), lambda: page(quick.waiting, position, limit)
        )
        return [
            Listed(entry.image_id, directory.node(entry.image_id).attributes(), entry.inode)
            for entry in entries
        ]
