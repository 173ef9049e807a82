"""Open directories by the numbers that the kernel knows them by (:mod:`cachefs.vfs.handles`).

A number says by itself which directory it is of, so a listing can be made anew at any time: nothing
is kept of a directory that is open and not read, and of those that are read no more than
:data:`LISTINGS`, however many are never closed."""

from collections import OrderedDict

from cachefs.vfs.handles import new_handle
from cachefs.vfs.inodes import Serials
from cachefs.vfs.nodes import Listing

LISTINGS = 256
"""Listings that are kept at most; one goes when it is the longest unread. One that is read on after
that is made anew, as after the death of a worker, and may leave out or repeat what came or went."""


class Listings:
    """The listings under way."""

    def __init__(self, serials: Serials) -> None:
        self._serials = serials
        self._listings: OrderedDict[int, Listing] = OrderedDict()

    def __len__(self) -> int:
        return len(self._listings)

    def new_number(self, inode: int) -> int:
        """A number for one open of the directory *inode*."""
        return new_handle(self._serials, inode)

    def get(self, number: int) -> Listing | None:
        """The listing of a number, or None where none is kept."""
        listing = self._listings.get(number)
        if listing is not None:
            self._listings.move_to_end(number)
        return listing

    def keep(self, number: int, listing: Listing) -> None:
        """Keep a listing that is being read, instead of an earlier one of this number."""
        self._listings[number] = listing
        self._listings.move_to_end(number)
        while len(self._listings) > LISTINGS:
            self._listings.popitem(last=False)

    def release(self, number: int) -> None:
        """Forget a listing; nothing happens where none is kept."""
        self._listings.pop(number, None)
