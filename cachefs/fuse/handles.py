"""Open files and directories by the numbers that the kernel knows them by.

The numbers may outlive this process (see :mod:`cachefs.transport`): an image's is its inode's, so
that its open file can be taken up by the next one; a fixed file's or directory's has its inode
number in it, so that the next one can open it anew. A record's is stale then."""

from dataclasses import dataclass

from cachefs.errors import StaleError
from cachefs.vfs.inodes import Room, Serials, join, split
from cachefs.vfs.nodes import Listing, OpenFile

_INODE_BITS = 16
_STAMP_BITS = 40


@dataclass(slots=True)
class _Open:
    file: OpenFile
    opens: int = 0


class Handles:
    """The handle numbers in use. An :class:`OpenFile` with a number of its own is shared by all its
    opens, and closed with the last."""

    def __init__(self, serials: Serials) -> None:
        self._serials = serials
        self._files: dict[int, _Open] = {}
        self._listings: dict[int, Listing] = {}

    def __len__(self) -> int:
        return len(self._files) + len(self._listings)

    def add(self, file: OpenFile, inode: int, opens: int = 1) -> int:
        """Count *opens* opens of the file *inode*; the number it is known by."""
        number = file.handle or self._number(inode)
        self._files.setdefault(number, _Open(file)).opens += opens
        return number

    def resume(self, number: int, file: OpenFile) -> None:
        """Go on with an open that was made through an earlier daemon."""
        self._files.setdefault(number, _Open(file)).opens += 1

    def file(self, number: int) -> OpenFile | None:
        """The open file of a number; None where it was opened through an earlier daemon."""
        opened = self._files.get(number)
        return opened.file if opened else None

    def release(self, number: int) -> None:
        """One open less; the last closes the file."""
        opened = self._files.get(number)
        if opened is None:  # of an earlier daemon
            return
        opened.opens -= 1
        if opened.opens == 0:
            del self._files[number]
            opened.file.close()

    def add_listing(self, inode: int, listing: Listing) -> int:
        """Remember the open directory *inode*; its number."""
        number = self._number(inode)
        self._listings[number] = listing
        return number

    def listing(self, number: int) -> Listing | None:
        """The listing of a number; None where it was opened through an earlier daemon."""
        return self._listings.get(number)

    def resume_listing(self, number: int, listing: Listing) -> None:
        """Go on with a listing that an earlier daemon began."""
        self._listings[number] = listing

    def release_listing(self, number: int) -> None:
        """Forget an open directory."""
        self._listings.pop(number, None)

    def close(self) -> None:
        """Close everything, at the end of the mount."""
        while self._files:
            self._files.popitem()[1].file.close()
        self._listings.clear()

    def _number(self, inode: int) -> int:
        serial = self._serials.next()
        if inode >> _INODE_BITS:
            return serial
        stamp = serial & ((1 << _STAMP_BITS) - 1)
        return join(Room.HANDLE, stamp << _INODE_BITS | inode)


def inode_of(number: int) -> int:
    """The inode number in a handle's number. Raises StaleError where there is none."""
    room, rest = split(number)
    if room != Room.HANDLE:
        raise StaleError("this was opened through an earlier daemon")
    return rest & ((1 << _INODE_BITS) - 1)
