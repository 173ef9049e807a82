"""The whole tree, and the way from an inode number to its node."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cachefs.errors import IndexBusyError, StaleError
from cachefs.vfs.in_threads import in_thread
from cachefs.vfs.inodes import IMAGES_INODE, NodeKind, split
from cachefs.vfs.nodes import Caller, Node, OpenFile


def _never_forget(serial: int, lookups: int) -> None:
    """For kinds of nodes that are found without being remembered."""


def _let_be(serial: int) -> None:
    """For kinds of nodes that are looked up again without more ado."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """How nodes of a kind are found: *find* gives the node of a serial (raises StaleError),
    *forget* hears that the kernel has dropped some references to it, *refused* that what was asked
    of it was refused as stale. Where *find* may raise IndexBusyError, *wait* is called in a thread
    instead."""

    find: Callable[[int], Node]
    forget: Callable[[int, int], None] = _never_forget
    wait: Callable[[int], Node] | None = None
    refused: Callable[[int], None] = _let_be


class Tree:
    """Nodes by inode number (see :class:`cachefs.vfs.inodes.NodeKind`)."""

    def __init__(self, kinds: dict[int, Nodes]) -> None:
        self._kinds = kinds

    def node(self, inode: int) -> Node:
        """The node of an inode number. Raises StaleError where it means nothing any more."""
        kind, serial = split(inode)
        try:
            nodes = self._kinds[kind]
        except KeyError:
            raise StaleError(f"inode number {inode} is of no kind") from None
        return nodes.find(serial)

    async def open(self, inode: int, caller: Caller, *, writing: bool) -> OpenFile:
        """Open the node of an inode number. Raises StaleError, upon which the kernel looks the name
        up again, and as :meth:`Node.open`."""
        with self._telling_of_refusals(inode):
            node = await self._find(inode)
            return await node.open(caller, writing=writing)

    async def node_when_free(self, inode: int) -> Node:
        """As :meth:`node`, where the index may be locked. A StaleError has the kernel look the name
        up again, as of an open: it may ask for a node's attributes before it opens it
        (``fuse_perm_getattr`` in ``fs/fuse/dir.c``)."""
        with self._telling_of_refusals(inode):
            return await self._find(inode)

    def is_image(self, inode: int) -> bool:
        """Whether the number is that of ``images/`` or of a file in it."""
        return inode == IMAGES_INODE or split(inode)[0] in (NodeKind.CACHED, NodeKind.LAZY)

    def forget(self, inode: int, lookups: int) -> None:
        """The kernel has dropped *lookups* references to an inode."""
        kind, serial = split(inode)
        if kind in self._kinds:
            self._kinds[kind].forget(serial, lookups)

    # Inside

    async def _find(self, inode: int) -> Node:
        try:
            return self.node(inode)
        except IndexBusyError:
            kind, serial = split(inode)
            wait = self._kinds[kind].wait
            if wait is None:
                raise
            return await in_thread(lambda: wait(serial))

    @contextmanager
    def _telling_of_refusals(self, inode: int) -> Iterator[None]:
        try:
            yield
        except StaleError:
            kind, serial = split(inode)
            if kind in self._kinds:
                self._kinds[kind].refused(serial)
            raise


def fixed(nodes: list[Node]) -> Nodes:
    """The nodes that are always there."""
    by_inode = {node.attributes().inode: node for node in nodes}

    def find(serial: int) -> Node:
        try:
            return by_inode[serial]
        except KeyError:
            raise StaleError(f"inode number {serial} means nothing") from None

    return Nodes(find)
