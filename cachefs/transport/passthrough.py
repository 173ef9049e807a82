"""Which nodes are open, and how: counts opens and releases, owns the backing ids.

Amends successful answers to OPEN so that the kernel goes to the backing file, and keeps the
kernel's rules about I/O modes. Knows the device and the table; nothing of libfuse's side, trio or
pyfuse3.

INVARIANT: all concurrent opens of a node have one I/O mode, and in passthrough one backing id; the
kernel fails an open that differs with EIO (``fuse_inode_uncached_io_start``: EBUSY, ETXTBSY). The
first open without FOPEN_DIRECT_IO decides, the others follow. FOPEN_DIRECT_IO goes with cached
opens as it is, and with passthrough ones if it bears their PASSTHROUGH and id
(``fuse_file_io_open``).

INVARIANT: a backing id lives from the first passthrough open of its node to the last release, and
not longer, whichever process is killed in between: the disk space of an evicted image is back after
its last close. How: see :mod:`.open_table`.

INVARIANT: KEEP_CACHE and PASSTHROUGH are never set together.

What a kill can leave at each point of an open, and what the next worker
(:meth:`Passthrough.recover`) makes of it:

1. before the ioctl, INTENTS raised: the orphan's number does not exist; the kernel resends the
   OPEN.
2. ioctl done, nothing committed: the orphan's number exists, is closed; the kernel resends the
   OPEN.
3. committed, reply not written: the count stands, the reply is written from the journal.
4. reply written, journal not cleared: the same; the kernel says ENOENT, which is right.
5. of the last release: opens 0 committed, its id perhaps closed: it is closed (again), slot
   dropped.
"""

import errno
import logging
import os
import time
from contextlib import suppress

from cachefs.kernel import wire
from cachefs.kernel.device import Connection

from .open_table import IOMode, OpenTable, Slot, TableFullError

log = logging.getLogger(__name__)

_COMPLAIN_EVERY = 60.0  # seconds between two warnings of the same kind


class Passthrough:
    """The open nodes of one connection. All methods are for the pump's task only."""

    def __init__(self, connection: Connection, table: OpenTable, *, passthrough: bool) -> None:
        self._connection = connection
        self._table = table
        self.passthrough = passthrough
        self._complained = -_COMPLAIN_EVERY

    def recover(self) -> None:
        """Finish what a killed worker had begun. Call once, before anything is read or answered."""
        self._table.reload()
        reply = self._table.redo()
        if reply:
            opened = self._table.journal_node
            try:
                self._connection.write(reply)
            except FileNotFoundError:
                pass  # the kernel has it
            except OSError as error:
                log.warning("the kernel refused a killed worker's answer: %s", error)
                if len(reply) > wire.OUT_HEADER_SIZE:  # an OPEN's; a RELEASE's is a bare header
                    self._undo(opened, 1)
        self._table.delivered()
        for orphan in self._table.orphans():
            self._connection.close_backing(orphan)
        for nodeid, slot in self._table.nodes().items():
            if slot.opens == 0:
                self._forget(nodeid, slot)

    def answer_open(
        self, nodeid: int, open_flags: int, reply: memoryview, fd: int | None, *, create: bool
    ) -> int:
        """Write a successful answer to OPEN or CREATE, amended, to the kernel.

        *open_flags* are those of ``open(2)``, *fd* is the file's
        :attr:`~cachefs.transport.backing.Grant.fd`. Returns 0, or the errno for which the open
        cannot be: then the kernel has not been answered, or is not there to hear it, and the open
        must be given back.
        """
        _, flags, _ = wire.open_out(reply, create=create)
        slot = self._table.get(nodeid)
        backing_id = 0
        if flags & wire.OpenFlag.DIRECT_IO:
            value = slot._replace(opens=slot.opens + 1) if slot else Slot(1, 0, IOMode.NEUTRAL)
        elif slot is not None and slot.mode is not IOMode.NEUTRAL:
            value = slot._replace(opens=slot.opens + 1)
        else:
            opens = slot.opens + 1 if slot else 1
            readable = not create and open_flags & os.O_ACCMODE == os.O_RDONLY
            if self.passthrough and fd is not None and readable:
                backing_id = self._make_backing_id(fd)
            mode = IOMode.PASSTHROUGH if backing_id else IOMode.CACHED
            value = Slot(opens, backing_id, mode)
        if value.mode is IOMode.PASSTHROUGH and not create:
            wire.set_passthrough(reply, value.backing_id)
        try:
            self._table.commit(nodeid, value, reply, fresh=backing_id > 0)
        except TableFullError as error:
            self._complain("an open is refused: %s", error)
            if backing_id:
                self._connection.close_backing(backing_id)
                self._table.made(backing_id)
            return errno.ENFILE
        try:
            self._connection.write(reply)
        except OSError as error:
            self._table.delivered()
            self._undo(nodeid, 1)
            return error.errno or errno.EIO
        self._table.delivered()
        return 0

    def answer_release(self, nodeid: int, reply: memoryview) -> None:
        """Write the answer to a RELEASE to the kernel, which has closed the handle already."""
        slot = self._table.get(nodeid)
        if slot is None or slot.opens == 0:
            self._write(reply)
            return
        value = slot._replace(opens=slot.opens - 1)
        self._table.commit(nodeid, value, reply)
        self._write(reply)
        self._table.delivered()
        if value.opens == 0:
            self._forget(nodeid, value)

    def nodes(self) -> dict[int, int]:
        """The open nodes and how often each is open."""
        return {nodeid: slot.opens for nodeid, slot in self._table.nodes().items()}

    def _make_backing_id(self, fd: int) -> int:
        self._table.intend()
        try:
            return self._connection.open_backing(fd)
        except OSError as error:
            self._table.refrain()
            self._complain("reads go through the daemon, the kernel refuses passthrough: %s", error)
            return 0

    def _undo(self, nodeid: int, opens: int) -> None:
        slot = self._table.get(nodeid)
        if slot is None:
            return
        value = slot._replace(opens=max(slot.opens - opens, 0))
        self._table.commit(nodeid, value, b"")
        self._table.delivered()
        if value.opens == 0:
            self._forget(nodeid, value)

    def _forget(self, nodeid: int, slot: Slot) -> None:
        if slot.backing_id:
            self._connection.close_backing(slot.backing_id)
        self._table.drop(nodeid)

    def _write(self, reply: memoryview) -> None:
        with suppress(FileNotFoundError):  # nobody waits for it any more
            self._connection.write(reply)

    def _complain(self, message: str, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained >= _COMPLAIN_EVERY:
            self._complained = now
            log.warning(message, error)
