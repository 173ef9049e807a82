"""What to do with each message that passes between the kernel and libfuse.

Owns the requests under way: which are out, which the kernel has been answered EINTR, what undoes
them. Decides and writes to the device, which never blocks for an answer; sends nothing to libfuse
itself but hands over what is to be sent. Knows nothing of trio, pyfuse3 or mounting.

INVARIANT: a message that is not named here goes through unharmed, whole and in order; so does every
named one but for the fields amended (INIT, OPEN). READs are in order among themselves only: they
take longest, so all else that has come goes before them. The kernel sends the RELEASE of a handle
after the last answer to its READs.

INVARIANT: each request that the kernel awaits an answer to gets one, at most once: libfuse's, or
EINTR in its place, and then libfuse's is swallowed and what it granted is given back (a lookup by
FORGET, a handle by RELEASE).

A request that kills the worker that gets it would be resent to one worker after the other. After
some deaths in a row the supervisor therefore starts one in *quarantine*, which answers EIO to what
is resent.

INVARIANT: only requests that change nothing are answered EINTR; the caller who asked for a change
learns what became of it.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from cachefs.kernel import signals, wire
from cachefs.kernel.device import Connection
from cachefs.kernel.wire import Opcode

from .backing import Guarded
from .open_table import OpenTable
from .passthrough import Passthrough

log = logging.getLogger(__name__)

MAX_IO: Final = 1 << 18
"""Bytes of the largest READ or WRITE that the relay lets the kernel send. A message on the socket
is one allocation, contiguous but for 68 KiB (``unix_dgram_sendmsg``): of 1 MiB it could fail when
memory is fragmented, and libfuse's answer be lost; it would take a fifth less CPU."""
MAX_BACKGROUND: Final = 512
"""Readahead requests under way at once; with the kernel's 12, readers that wait for a slow origin
would keep all others from reading."""
MESSAGE_MAX: Final = (1 << 20) + 8192
"""Bytes of the largest message of any kind: a notification to store pages may be larger than a
reply."""

_INTERRUPTIBLE: Final = frozenset(
    {
        Opcode.LOOKUP,
        Opcode.GETATTR,
        Opcode.READLINK,
        Opcode.OPEN,
        Opcode.READ,
        Opcode.STATFS,
        Opcode.GETXATTR,
        Opcode.LISTXATTR,
        Opcode.OPENDIR,
        Opcode.READDIR,
        Opcode.READDIRPLUS,
        Opcode.ACCESS,
        Opcode.LSEEK,
        Opcode.STATX,
    }
)
_NO_REPLY: Final = frozenset(int(opcode) for opcode in wire.NO_REPLY)
_INIT, _OPEN, _CREATE, _READ = int(Opcode.INIT), int(Opcode.OPEN), int(Opcode.CREATE), 15
_RELEASE, _INTERRUPT = int(Opcode.RELEASE), int(Opcode.INTERRUPT)
_KEPT: Final = frozenset({_INIT, _RELEASE, int(Opcode.RELEASEDIR)})
_WATCHED: Final = frozenset({_INIT, _OPEN, _CREATE, _RELEASE})


class Pending(NamedTuple):
    """A request that libfuse has and has not answered. *flags* are those of ``open(2)``."""

    opcode: int
    nodeid: int
    pid: int
    flags: int = 0


class Exchange:
    """One connection's traffic, seen by one worker. All methods are for the pump's task only."""

    def __init__(
        self,
        connection: Connection,
        table: OpenTable,
        opens: Passthrough,
        backing: Guarded,
        *,
        send: Callable[[bytes], None],
        notify: Callable[[bytes], None],
        passthrough: bool,
        quarantine: bool = False,
        wants_to_end: Callable[[int], bool] = signals.task_wants_to_end,
    ) -> None:
        self._connection = connection
        self._table = table
        self._opens = opens
        self._backing = backing
        self._send = send
        self._notify = notify
        self._passthrough = passthrough
        self._quarantine = quarantine
        self._wants_to_end = wants_to_end
        self._out: dict[int, Pending] = {}
        self._queued: dict[int, bytes] = {}  # READs that have not had their turn
        self._reads: set[int] = set()
        self._interrupted: dict[int, int] = {}  # unique -> pid: may want to end later
        self._swallow: dict[int, Pending] = {}
        self._offered = 0
        self._own_unique = wire.OWN_BIT
        self._reply = bytearray(wire.OUT_HEADER_SIZE + MAX_IO)
        self._data = memoryview(self._reply)[wire.OUT_HEADER_SIZE :]
        self.reads_here = 0

    @property
    def idle(self) -> bool:
        """Whether nothing that the kernel waits for is under way."""
        return not self._out and not self._queued

    @property
    def reads_queued(self) -> bool:
        """Whether there is anything to do for :meth:`serve_read`."""
        return bool(self._queued)

    # --- from the kernel ----------------------------------------------------------------------

    def request(self, message: memoryview) -> bool:
        """Look at a message from the kernel, amend it in place; whether libfuse is to have it. A
        READ is kept for :meth:`serve_read`."""
        _, opcode, unique, nodeid, _, _, pid, _, _ = wire.IN_HEADER.unpack_from(message)
        if opcode == _INTERRUPT:
            self._interrupt(wire.interrupt_target(message))
            return False
        if opcode in _NO_REPLY:
            return True
        if self._quarantine and unique & wire.RESEND_BIT and opcode not in _KEPT:
            self._write(wire.error_reply(unique, errno.EIO), unique)
            return False
        flags = 0
        if opcode == _READ:
            self._queued[unique] = bytes(message)
            return False
        if opcode in (_OPEN, _CREATE):
            flags = wire.open_in_flags(message)
            if opcode == _OPEN and self._open_here(unique, nodeid, flags):
                return False
        elif opcode == _RELEASE and self._release_here(unique, nodeid, message):
            return False
        elif opcode == _INIT:
            self._table.save_init(bytes(message))
            self._offer(message)
        self._out[unique] = Pending(opcode, nodeid, pid, flags)
        return True

    def serve_read(self) -> bytes | None:
        """Answer the oldest READ that waits, if any, or return it for libfuse to have."""
        if not self._queued:
            return None
        unique = next(iter(self._queued))
        message = self._queued.pop(unique)
        _, _, _, nodeid, _, _, pid, _, _ = wire.IN_HEADER.unpack_from(message)
        if self._read_here(unique, memoryview(message)):
            return None
        self._out[unique] = Pending(_READ, nodeid, pid)
        return message

    def replay_init(self) -> bytes:
        """The kernel's saved INIT, as libfuse is to have it; its answer goes to
        :meth:`amend_init`, not to :meth:`reply`."""
        message = bytearray(self._table.init_request)
        self._offer(memoryview(message))
        return bytes(message)

    def _offer(self, message: memoryview) -> None:
        self._offered = wire.init_in_flags(message)
        wire.hide_splice(message)

    def amend_init(self, reply: memoryview) -> None:
        """Amend libfuse's answer to INIT in place."""
        wire.amend_init(
            reply,
            self._offered,
            passthrough=self._passthrough,
            max_io=MAX_IO,
            background=MAX_BACKGROUND,
        )
        self._opens.passthrough = bool(wire.init_out(reply).flags & wire.InitFlag.PASSTHROUGH)

    def _read_here(self, unique: int, message: memoryview) -> bool:
        """Answer a READ from the file's page cache; False where pyfuse3 has to.

        A read that got less than it asked for, and not because the file ends, is not an answer: the
        kernel takes a short answer for the end of the file (``fuse_short_read``). Nor is it where
        the file is no longer the one to read, as it is not when another program has emptied it.
        """
        fh, offset, size = wire.read_in(message)
        fd = self._backing.read_fd(fh, offset, offset + size)
        if fd is None or size > MAX_IO:
            return False
        try:
            got = os.preadv(fd, [self._data[:size]], offset, os.RWF_NOWAIT)
            if got < size:
                length = os.fstat(fd).st_size
                if offset + got != length and (got or offset < length):
                    return False
                if self._backing.read_fd(fh, offset, offset + size) != fd:
                    return False
        except OSError:
            return False  # EAGAIN: not in memory; others: pyfuse3 will say what is wrong
        length = wire.OUT_HEADER_SIZE + got
        wire.OUT_HEADER.pack_into(self._reply, 0, length, 0, unique)
        self._write(memoryview(self._reply)[:length], unique)
        self.reads_here += 1
        return True

    def _open_here(self, unique: int, nodeid: int, flags: int) -> bool:
        grant = self._backing.open(nodeid, flags)
        if grant is None:
            return False
        reply = memoryview(wire.open_reply(unique, grant.handle, wire.OpenFlag.KEEP_CACHE))
        refused = self._opens.answer_open(nodeid, flags, reply, grant.fd, create=False)
        if refused:
            self._backing.close(grant.handle)
            if refused != errno.ENOENT:
                self._write(wire.error_reply(unique, refused), unique)
        return True

    def _release_here(self, unique: int, nodeid: int, message: memoryview) -> bool:
        released = self._backing.close(wire.release_in_fh(message))
        if released:
            self._opens.answer_release(nodeid, memoryview(wire.error_reply(unique, 0)))
        return released

    # --- interrupts ---------------------------------------------------------------------------

    def _interrupt(self, unique: int) -> None:
        if unique in self._queued:
            self._interrupted[unique] = wire.IN_HEADER.unpack_from(self._queued[unique])[6]
        # An unknown one is answered already: the kernel interrupts only what we have read.
        pending = self._out.get(unique)
        if pending is not None and pending.opcode in _INTERRUPTIBLE:
            self._interrupted[unique] = pending.pid
            self.check_interrupted()

    @property
    def waiting(self) -> bool:
        """Whether :meth:`check_interrupted` has anything to watch."""
        return bool(self._out)

    def watch_reads(self) -> None:
        """Take READs for interrupted that were out at the last call already: the kernel tells
        nobody of a signal to a reader that waits for a page that readahead has asked for
        (``folio_wait_bit_killable``). To be called now and then, before the following."""
        reads = {unique for unique, out in self._out.items() if out.opcode == Opcode.READ}
        for unique in reads & self._reads:
            self._interrupted.setdefault(unique, self._out[unique].pid)
        self._reads = reads

    def check_interrupted(self) -> None:
        """Answer EINTR to interrupted requests whose callers want to end. To be called now and
        then: the kernel does not tell of a second signal, which may be the one that kills."""
        for unique, pid in list(self._interrupted.items()):
            if unique in self._queued:
                continue  # its turn comes
            if unique not in self._out:
                del self._interrupted[unique]
            elif self._wants_to_end(pid):
                del self._interrupted[unique]
                self._swallow[unique] = self._out.pop(unique)
                self._write(wire.error_reply(unique, errno.EINTR), unique)

    def _give_back(self, pending: Pending, reply: memoryview) -> None:
        for message in self._undoing(pending, reply):
            self._send(message)

    def _undoing(self, pending: Pending, reply: memoryview) -> Iterator[bytes]:
        _, error, _ = wire.OUT_HEADER.unpack_from(reply)
        if error:
            return
        if pending.opcode == Opcode.LOOKUP:
            if nodeid := wire.entry_nodeid(reply):
                yield wire.forget(self._next_unique(), nodeid)
        elif pending.opcode in (Opcode.OPEN, Opcode.OPENDIR):
            fh = wire.open_out(reply).fh
            directory = pending.opcode == Opcode.OPENDIR
            yield wire.release(self._next_unique(), pending.nodeid, fh, directory=directory)
        elif pending.opcode == Opcode.CREATE:
            nodeid, fh = wire.entry_nodeid(reply), wire.open_out(reply, create=True).fh
            yield wire.release(self._next_unique(), nodeid, fh)
            yield wire.forget(self._next_unique(), nodeid)
        elif pending.opcode == Opcode.READDIRPLUS:
            for nodeid in wire.direntplus_nodeids(reply):
                yield wire.forget(self._next_unique(), nodeid)

    def _next_unique(self) -> int:
        self._own_unique += 2
        return self._own_unique

    # --- from libfuse -------------------------------------------------------------------------

    def reply(self, message: memoryview) -> None:
        """Deliver a message from libfuse: amended, swallowed or as it is."""
        _, error, unique = wire.OUT_HEADER.unpack_from(message)
        if unique == 0:
            self._notify(bytes(message))
            return
        pending = self._out.pop(unique, None)
        if pending is None:
            swallowed = self._swallow.pop(unique, None)
            if swallowed is not None:
                self._give_back(swallowed, message)
            elif not unique & wire.OWN_BIT or unique & wire.RESEND_BIT:
                self._write(message, unique)
            return
        if pending.opcode not in _WATCHED or (error and pending.opcode != _RELEASE):
            self._write(message, unique)
        elif pending.opcode == _RELEASE:
            self._opens.answer_release(pending.nodeid, message)
        elif pending.opcode == _INIT:
            self.amend_init(message)
            self._write(message, unique)
            self._table.init_answered = True
        else:
            self._answer_open(pending, message, unique)

    def _answer_open(self, pending: Pending, message: memoryview, unique: int) -> None:
        create = pending.opcode == _CREATE
        nodeid = wire.entry_nodeid(message) if create else pending.nodeid
        grant = self._backing.opened(wire.open_out(message, create=create).fh)
        fd = grant.fd if grant else None
        refused = self._opens.answer_open(nodeid, pending.flags, message, fd, create=create)
        if refused:
            self._give_back(pending, message)
            if refused != errno.ENOENT:
                self._write(wire.error_reply(unique, refused), unique)

    def _write(self, message: bytes | memoryview, unique: int) -> None:
        try:
            self._connection.write(message)
        except FileNotFoundError:
            pass  # nobody waits for it any more
        except OSError as error:
            if error.errno == errno.ENODEV:
                return  # unmounted: the reading side will see it, too
            log.error("the kernel refused an answer: %s", error)
            try:
                self._connection.write(wire.error_reply(unique, errno.EIO))
            except OSError as again:
                log.debug("and an error in its place: %s", again)
