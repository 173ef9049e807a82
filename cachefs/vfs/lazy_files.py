"""Files of images that are being fetched, while they are open: held, noted, and closed.

Owns how often each is open. Such a file is held from its first open to its last close, for a fetch
that fails takes away its name; on a mount that outlives its worker a note says which version it is,
so that the fetch can go on without asking the source.

All in the event loop, where nothing is awaited between a look at a state and what is made of it."""

import logging
from collections import Counter
from collections.abc import Callable

from cachefs.fetcher import Flight
from cachefs.vfs.hits import Hits
from cachefs.vfs.holding import Holding
from cachefs.vfs.inodes import NodeKind, join
from cachefs.vfs.nodes import Caller
from cachefs.vfs.open_files import OpenFiles
from cachefs.vfs.open_images import LazyFile
from cachefs.vfs.reader import Reader
from cachefs.vfs.waiting import unless_interrupted

log = logging.getLogger(__name__)


class LazyFiles:
    """The images under way that are open in one mount. *on_close* is called after each close."""

    def __init__(
        self,
        holding: Holding,
        files: OpenFiles,
        hits: Hits,
        reader: Reader,
        *,
        on_close: Callable[[], None],
    ) -> None:
        self._holding = holding
        self._files = files
        self._hits = hits
        self._reader = reader
        self._on_close = on_close
        self._followers: Counter[int] = Counter()

    async def open(self, serial: int, flight: Flight, caller: Caller) -> LazyFile:
        """The open file of an image, once there is a file; the caller counts its open at once.
        Raises why there will be none. Cancellation only ends the waiting."""
        inode = join(NodeKind.LAZY, serial)
        flight.add_reader()  # until the open file has counted itself
        try:
            await unless_interrupted(caller.pid, flight.begin)
            grant = self._files.opened(inode)
            if grant is not None and isinstance(grant.file, LazyFile):
                return grant.file
            return self._follow(flight, inode, caller.pid)
        finally:
            flight.drop_reader()

    def flight_ended(self, flight: Flight) -> None:
        """A fetch has ended: what its readers have open is the image now, or nothing."""
        if flight.error is None and self._holding.lasting:
            for grant in self._files:
                if isinstance(grant.file, LazyFile) and grant.file.flight is flight:
                    try:
                        self._holding.note(flight.image, grant.handle, complete=True)
                    except OSError as error:  # the next worker looks whether it was published
                        log.warning("cannot note that %d is complete: %s", grant.handle, error)

    def _follow(self, flight: Flight, inode: int, pid: int) -> LazyFile:
        lasting = self._holding.lasting
        if not self._followers[inode]:
            try:
                # Before the kernel hears of the open: the next worker must find the file, and what
                # it is.
                if lasting:
                    self._holding.note(flight.image, inode, complete=flight.is_published)
                self._holding.keep_open(flight.fd, inode)
            except OSError:
                self._holding.release(inode)
                raise
            flight.file.on_another[inode] = lambda: self._hold_another(flight, inode)
        self._followers[inode] += 1
        handle, pid = (inode, 0) if lasting else (0, pid)
        return LazyFile(
            flight,
            self._reader,
            pid=pid,
            handle=handle,
            on_close=lambda: self._left(flight, inode),
        )

    def _hold_another(self, flight: Flight, inode: int) -> None:
        """What the readers have open is written in another file from now on."""
        try:
            self._holding.keep_open(flight.fd, inode)
        except OSError as error:
            log.warning("the next worker will miss what is open as %d: %s", inode, error)

    def _left(self, flight: Flight, inode: int) -> None:
        """An image that was opened while it was being fetched is closed."""
        self._followers[inode] -= 1
        if self._followers[inode] <= 0:
            del self._followers[inode]
            flight.file.on_another.pop(inode, None)
            self._holding.release(inode)
            if flight.is_published:
                self._hits.closed(flight.image.image_id)
        self._on_close()
