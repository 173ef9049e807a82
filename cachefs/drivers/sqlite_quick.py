"""The sqlite driver's part for an event loop, on a connection that waits for nobody.

Makes no database anew, which takes a while: what cannot be used is busy, and left to the driver.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from cachefs.drivers import tables
from cachefs.drivers.base import Entry, Totals
from cachefs.drivers.connections import Connections
from cachefs.drivers.index import Index
from cachefs.errors import DriverError, IndexBusyError

T = TypeVar("T")


class SqliteQuick:
    """See :class:`cachefs.drivers.base.QuickDriver`. *connections* gives the open database, or
    raises IndexBusyError."""

    def __init__(self, connections: Callable[[], Connections]) -> None:
        self._connections = connections

    def get(self, image_id: str) -> Entry | None:
        """As the contract says."""
        return self._one("WHERE image_id = ?", image_id)

    def by_inode(self, inode: int) -> Entry | None:
        """As the contract says."""
        return self._one("WHERE o.inode = ?", inode)

    def entries_after(self, inode: int, limit: int) -> list[Entry]:
        """As the contract says."""
        return self._asked(lambda index: tables.entries_after(index, inode, limit))

    def totals(self) -> Totals:
        """As the contract says."""
        return self._asked(Index.totals)

    def hit(self, image_id: str, when: float, count: int = 1) -> None:
        """As the contract says."""
        if self._connections().is_full:
            raise IndexBusyError("the index's log is too long")
        self._asked(lambda index: index.run(tables.HIT, (count, when, image_id)))

    @property
    def is_untidy(self) -> bool:
        """As the contract says."""
        with suppress(IndexBusyError):
            return self._connections().is_untidy
        return False

    def _one(self, where: str, value: object) -> Entry | None:
        return self._asked(lambda index: tables.one(index, where, value))

    def _asked(self, work: Callable[[Index], T]) -> T:
        connections = self._connections()
        try:
            return work(connections.quick)
        except IndexBusyError:
            raise
        except DriverError as error:
            # Lost, and the driver itself makes a new one, which takes a while; or closed for that.
            raise IndexBusyError(str(error)) from error
