"""The xattr driver's part for an event loop: the driver itself, while nothing is waited for."""

from typing import TYPE_CHECKING

from cachefs.drivers.base import Entry, Totals
from cachefs.errors import IndexBusyError

if TYPE_CHECKING:
    from cachefs.drivers.xattr import XattrDriver


class XattrQuick:
    """See :class:`cachefs.drivers.base.QuickDriver`."""

    is_untidy = False

    def __init__(self, driver: "XattrDriver") -> None:
        self._driver = driver

    def get(self, image_id: str) -> Entry | None:
        """As the contract says; a file without a number is given one by a thread."""
        entry = self._driver.read(image_id)
        if entry is not None and entry.inode == 0:
            raise IndexBusyError(f"image {image_id!r} has no number yet")
        return entry

    def by_inode(self, inode: int) -> Entry | None:
        """As the contract says."""
        with self._driver.at_once():
            return self._driver.by_inode(inode)

    def entries_after(self, inode: int, limit: int) -> list[Entry]:
        """As the contract says."""
        with self._driver.at_once():
            return self._driver.entries_after(inode, limit)

    def totals(self) -> Totals:
        """As the contract says."""
        with self._driver.at_once():
            return self._driver.totals()

    def hit(self, image_id: str, when: float, count: int = 1) -> None:
        """As the contract says."""
        with self._driver.at_once():
            self._driver.hit(image_id, when, count)
