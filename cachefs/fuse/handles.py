"""Open files and directories by the numbers that the kernel knows them by.

The numbers may outlive this process (see :mod:`cachefs.transport`): an image's is its inode's, so
that its open file can be taken up by the next one; a directory's has the directory's inode number
in it, so that the next one can list it anew. What else was open before is stale."""

from dataclasses import dataclass

from cachefs.errors import StaleError
from cachefs.vfs.inodes import Room, Serials, join
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

    def add(self, file: OpenFile, opens: int = 1) -> int:
        """Count *opens* opens of *file*; its number."""
        number = file.handle or self._serials.next()
        self._files.setdefault(number, _Open(file)).opens += opens
        return number

    def file(self, number: int) -> OpenFile:
        """The open file of a number. Raises StaleError."""
        try:
            return self._files[number].file
        except KeyError:
            raise StaleError("this file was opened through an earlier daemon") from None

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
        stamp = self._serials.next() & ((1 << _STAMP_BITS) - 1)
        number = join(Room.HANDLE, stamp << _INODE_BITS | inode)
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


def directory_of(number: int) -> int:
    """The inode number of the directory whose listing has this number."""
    return number & ((1 << _INODE_BITS) - 1)
