"""Open directories by the numbers that the kernel knows them by (:mod:`cachefs.vfs.handles`)."""

from cachefs.vfs.handles import new_handle
from cachefs.vfs.inodes import Serials
from cachefs.vfs.nodes import Listing


class Listings:
    """The listings under way."""

    def __init__(self, serials: Serials) -> None:
        self._serials = serials
        self._listings: dict[int, Listing] = {}

    def __len__(self) -> int:
        return len(self._listings)

    def add(self, inode: int, listing: Listing) -> int:
        """Remember the open directory *inode*; its number."""
        number = new_handle(self._serials, inode)
        self._listings[number] = listing
        return number

    def get(self, number: int) -> Listing | None:
        """The listing of a number; None where it was opened through an earlier worker."""
        return self._listings.get(number)

    def resume(self, number: int, listing: Listing) -> None:
        """Go on with a listing that an earlier worker began."""
        self._listings[number] = listing

    def release(self, number: int) -> None:
        """Forget an open directory."""
        self._listings.pop(number, None)
