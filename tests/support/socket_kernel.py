"""The kernel's side of a FUSE connection, played by a test over a socket: no mount, no privileges
of a mount, every message in the test's hands.

Owns what ``fs/fuse`` owns: which requests await an answer, what is handed out again on
FUSE_NOTIFY_RESEND, how often each node is looked up and open. ``os.readv`` and ``os.write`` work on
a SOCK_SEQPACKET socket as on ``/dev/fuse``, one message at a time. Must not know the filesystem
that answers, nor pyfuse3 or trio.

A socket cannot do two things of the device: fail the write of an answer that is not awaited any
more (it is kept in :attr:`SocketKernel.unawaited`), and make backing ids (the ioctl is ENOTTY).

Source: ``linux/fuse.h``; ``fuse_resend``, ``fuse_dev_do_write`` in ``fs/fuse/dev.c``.
"""

import os
import select
import socket
import struct
import time
from collections import Counter
from typing import NamedTuple

from cachefs.kernel import wire
from cachefs.kernel.wire import InitFlag, Notify, Opcode
from cachefs.transport.base import SO_RCVBUFFORCE, SO_SNDBUFFORCE, SOCKET_BUFFER
from cachefs.transport.open_table import OpenTable
from cachefs.vfs.inodes import ROOT_INODE

INTERRUPT_BIT = 1  # FUSE_INT_REQ_BIT of fs/fuse/fuse_dev_i.h

LIMIT = 20.0
"""Seconds that an answer may take."""
_DO_READDIRPLUS = 1 << 13  # pyfuse3 refuses a kernel without it
OFFERED = (
    InitFlag.INIT_EXT
    | InitFlag.HAS_RESEND
    | InitFlag.PASSTHROUGH
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.SPLICE_READ
)
"""What a kernel offers in INIT, of what the relay looks at."""
_INIT_IN = struct.Struct("=IIIII44x")
_READ_IN = struct.Struct("=QQIIQII")
_PID_AT = 32  # of fuse_in_header
_MESSAGE_MAX = 1 << 21


class Request(NamedTuple):
    """A request that awaits its answer."""

    opcode: int
    nodeid: int
    message: bytes


class Answer(NamedTuple):
    """What a request about *nodeid* was answered; *error* is an errno, or 0. *message* is all of
    it."""

    nodeid: int
    error: int
    body: bytes
    message: bytes


class Handle(NamedTuple):
    """An open file, with the flags and the backing id of the answer to its OPEN."""

    nodeid: int
    fh: int
    flags: int = 0
    backing_id: int = 0


class Notification(NamedTuple):
    """What the daemon told without being asked."""

    code: Notify
    body: bytes


class SocketKernel:
    """One connection. :attr:`device` is the other end, :attr:`table_fd` the memory that outlives
    workers: both are kept here, so that they outlive the worker that has duplicates."""

    def __init__(self) -> None:
        self._socket, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._socket, self.device):
            end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BUFFER)
            end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BUFFER)
            end.setblocking(False)
        self.table_fd = OpenTable.create(slots=1024)
        self.table = OpenTable(self.table_fd)
        self.lookups: Counter[int] = Counter()
        self.opens: Counter[int] = Counter()
        self.order: list[int] = []
        """Uniques as their answers came, without the RESEND bit."""
        self.notifications: list[Notification] = []
        self.resent: list[int] = []
        """Uniques that were handed out again, as they were before."""
        self.repeated = 0
        """Answers that came a second time, to the byte: the device says ENOENT to them."""
        self.unawaited: list[bytes] = []
        """Other answers to what was not asked, or not any more."""
        self._last_unique = 0
        self._awaited: dict[int, Request] = {}
        self._answers: dict[int, Answer] = {}
        self._lost: set[int] = set()  # read by a worker that died
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    # --- asking -------------------------------------------------------------------------------

    def send(self, opcode: Opcode, nodeid: int, body: bytes = b"", *, pid: int = 0) -> int:
        """Hand out a request of the task *pid*; its unique."""
        self._last_unique += 2
        message = bytearray(wire.request(opcode, self._last_unique, nodeid, body))
        struct.pack_into("=I", message, _PID_AT, pid)
        if opcode not in wire.NO_REPLY:
            self._awaited[self._last_unique] = Request(opcode, nodeid, bytes(message))
        self._socket.send(message)
        return self._last_unique

    def answer(self, unique: int) -> Answer:
        """The answer to a request, waited for."""
        deadline = time.monotonic() + LIMIT
        while unique not in self._answers:
            assert time.monotonic() < deadline, f"no answer to {unique} for {LIMIT} s"
            self.receive(wait=0.5)
        return self._answers[unique]

    def is_answered(self, unique: int) -> bool:
        """Whether the answer has come by now."""
        self.receive()
        return unique in self._answers

    def call(self, opcode: Opcode, nodeid: int, body: bytes = b"") -> bytes:
        """The body of the answer to a request. Raises :class:`OSError` if it fails."""
        return self.result(self.send(opcode, nodeid, body))

    def result(self, unique: int) -> bytes:
        """The body of the answer to a request that was sent. Raises :class:`OSError` if it
        fails."""
        answer = self.answer(unique)
        if answer.error:
            raise OSError(answer.error, os.strerror(answer.error))
        return answer.body

    def send_init(self, offered: InitFlag = OFFERED) -> int:
        """Hand out INIT, in which the kernel offers so much."""
        flags, flags2 = int(offered) & 0xFFFFFFFF | _DO_READDIRPLUS, int(offered) >> 32
        return self.send(Opcode.INIT, 0, _INIT_IN.pack(7, 45, 1 << 17, flags, flags2))

    def send_lookup(self, name: str, *, pid: int = 0) -> int:
        """Look a name up in the root."""
        return self.send(Opcode.LOOKUP, ROOT_INODE, os.fsencode(name) + b"\0", pid=pid)

    def lookup(self, name: str) -> int:
        """The node of that name."""
        return struct.unpack_from("=Q", self.result(self.send_lookup(name)))[0]

    def size(self, nodeid: int) -> int:
        """``st_size`` by GETATTR."""
        body = self.call(Opcode.GETATTR, nodeid, bytes(16))
        return struct.unpack_from("=16xQQ", body)[1]  # fuse_attr_out: valid, nsec, attr.ino, size

    def send_open(self, nodeid: int, *, pid: int = 0) -> int:
        """Open a node for reading."""
        return self.send(Opcode.OPEN, nodeid, struct.pack("=II", os.O_RDONLY, 0), pid=pid)

    def opened(self, unique: int) -> Handle:
        """What a request of :meth:`send_open` opened."""
        answer = self.answer(unique)
        assert answer.error == 0, os.strerror(answer.error)
        return Handle(answer.nodeid, *wire.open_out(answer.message))

    def open(self, nodeid: int) -> Handle:
        """Open a node for reading and wait for it."""
        return self.opened(self.send_open(nodeid))

    def send_read(self, handle: Handle, offset: int, size: int) -> int:
        """Ask for bytes [*offset*, *offset* + *size*)."""
        body = _READ_IN.pack(handle.fh, offset, size, 0, 0, 0, 0)
        return self.send(Opcode.READ, handle.nodeid, body)

    def read(self, handle: Handle, offset: int, size: int) -> bytes:
        """Those bytes."""
        return self.result(self.send_read(handle, offset, size))

    def send_release(self, handle: Handle) -> int:
        """Close a handle. As the kernel does, after the last answer to its READs."""
        return self.send(Opcode.RELEASE, handle.nodeid, struct.pack("=QIIQ", handle.fh, 0, 0, 0))

    def release(self, handle: Handle) -> None:
        """Close a handle and wait for the answer."""
        self.result(self.send_release(handle))

    def interrupt(self, unique: int) -> None:
        """Say that a signal has woken the task that waits for *unique*."""
        body = struct.pack("=Q", unique)
        self._socket.send(wire.request(Opcode.INTERRUPT, unique | INTERRUPT_BIT, 0, body))

    def fileno(self) -> int:
        """Readable when there is something to :meth:`receive`."""
        return self._socket.fileno()

    # --- hearing ------------------------------------------------------------------------------

    def receive(self, wait: float = 0.0) -> None:
        """Take what has come; wait for the first for at most so many seconds."""
        self._poll.poll(wait * 1000)
        while True:
            try:
                message = self._socket.recv(_MESSAGE_MAX)
            except BlockingIOError:
                return
            if not message:
                return
            _, code, unique = wire.OUT_HEADER.unpack_from(message)
            if unique:
                self._take_answer(unique, -code, message)
            elif code == Notify.RESEND:
                self._resend()
            else:
                self.notifications.append(
                    Notification(Notify(code), message[wire.OUT_HEADER_SIZE :])
                )

    def wait_for_notifications(self, count: int) -> list[Notification]:
        """The first *count* notifications."""
        deadline = time.monotonic() + LIMIT
        while len(self.notifications) < count:
            assert time.monotonic() < deadline, f"{len(self.notifications)} of {count} came"
            self.receive(wait=0.5)
        return self.notifications[:count]

    def _take_answer(self, unique: int, error: int, message: bytes) -> None:
        length, _, _ = wire.OUT_HEADER.unpack_from(message)
        assert length == len(message), "the device says EINVAL"
        plain = unique & ~wire.RESEND_BIT
        request = self._awaited.pop(unique, None)
        if request is None:
            before = self._answers.get(plain)
            if before is not None and before.message == message:
                self.repeated += 1
            else:
                self.unawaited.append(message)
            return
        body = message[wire.OUT_HEADER_SIZE :]
        self._answers[plain] = Answer(request.nodeid, error, body, message)
        self.order.append(plain)
        if request.opcode == Opcode.RELEASE:
            self.opens[request.nodeid] -= 1  # whatever the answer: the file is closed
        elif error:
            return
        elif request.opcode == Opcode.LOOKUP:
            self.lookups[wire.entry_nodeid(message)] += 1
        elif request.opcode == Opcode.OPEN:
            self.opens[request.nodeid] += 1

    # --- outliving workers --------------------------------------------------------------------

    def worker_died(self) -> None:
        """To be called once nobody reads the device: what the worker had read and not answered is
        handed out again when the next one asks; what it had not read stays for that one."""
        self.receive()
        unread = []
        try:
            while True:
                unread.append(self.device.recv(_MESSAGE_MAX))
        except BlockingIOError:
            pass
        self._lost = set(self._awaited) - {wire.parse_request(m).unique for m in unread}
        for message in unread:
            self._socket.send(message)

    def _resend(self) -> None:
        for unique in sorted(self._lost & set(self._awaited)):
            request = self._awaited.pop(unique)
            message = bytearray(request.message)
            struct.pack_into("=Q", message, 8, unique | wire.RESEND_BIT)
            self._awaited[unique | wire.RESEND_BIT] = request._replace(message=bytes(message))
            self.resent.append(unique & ~wire.RESEND_BIT)
            self._socket.send(message)
        self._lost.clear()

    def counted(self) -> dict[int, int]:
        """What is open by the workers' table. To be called while no request is under way."""
        self.table.reload()
        return {node: slot.opens for node, slot in self.table.nodes().items() if slot.opens}

    def unmount(self) -> None:
        """The worker reads that there is nothing to come. What it says is still heard: closing an
        end with unread messages would be an error at the other, as it is not on the device."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close all that was opened here."""
        self._socket.close()
        self.device.close()
        self.table.close()
        os.close(self.table_fd)
