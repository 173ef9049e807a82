"""Handle numbers: by what the kernel knows open files and directories.

A number may outlive the process that gave it: the mount stays while workers come and go. So an
image's is its inode's, by which the next worker takes its open file up; a fixed file's or
directory's has its inode number in it, so that the next worker can open it anew. A record's means
nothing to the next worker."""

from cachefs.errors import StaleError
from cachefs.vfs.inodes import NodeKind, Serials, join, split

_INODE_BITS = 16
_STAMP_BITS = 40


def new_handle(serials: Serials, inode: int) -> int:
    """A number for one open of *inode*, never given before."""
    serial = serials.next()
    if inode >> _INODE_BITS:
        return serial
    stamp = serial & ((1 << _STAMP_BITS) - 1)
    return join(NodeKind.HANDLE, stamp << _INODE_BITS | inode)


def inode_of(handle: int) -> int:
    """The inode number in a handle's number. Raises StaleError where there is none."""
    kind, rest = split(handle)
    if kind != NodeKind.HANDLE:
        raise StaleError("this was opened through an earlier daemon")
    return rest & ((1 << _INODE_BITS) - 1)
