"""The whole tree, and the way from an inode number to its node."""

from collections.abc import Callable
from dataclasses import dataclass

from cachefs.errors import StaleError
from cachefs.vfs.inodes import IMAGES_INODE, Room, split
from cachefs.vfs.nodes import Node


def _never_forget(serial: int, lookups: int) -> None:
    """For rooms whose nodes are found without being remembered."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """How a room finds the node of a serial (raises StaleError), and hears that the kernel
    forgets."""

    find: Callable[[int], Node]
    forget: Callable[[int, int], None] = _never_forget


class Tree:
    """Nodes by inode number, room by room (see :class:`cachefs.vfs.inodes.Room`)."""

    def __init__(self, rooms: dict[int, Nodes]) -> None:
        self._rooms = rooms

    def node(self, inode: int) -> Node:
        """The node of an inode number. Raises StaleError where it means nothing any more."""
        room, serial = split(inode)
        try:
            nodes = self._rooms[room]
        except KeyError:
            raise StaleError(f"inode number {inode} is in no room") from None
        return nodes.find(serial)

    def is_image(self, inode: int) -> bool:
        """Whether the number is that of ``images/`` or of a file in it."""
        return inode == IMAGES_INODE or split(inode)[0] in (Room.CACHED, Room.LAZY)

    def forget(self, inode: int, lookups: int) -> None:
        """The kernel has dropped *lookups* references to an inode."""
        room, serial = split(inode)
        if room in self._rooms:
            self._rooms[room].forget(serial, lookups)


def fixed(nodes: list[Node]) -> Nodes:
    """The room of the nodes that are always there."""
    by_inode = {node.attributes().inode: node for node in nodes}

    def find(serial: int) -> Node:
        try:
            return by_inode[serial]
        except KeyError:
            raise StaleError(f"inode number {serial} means nothing") from None

    return Nodes(find)
