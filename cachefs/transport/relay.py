"""The relay: pyfuse3 on one end of a socket pair, ``/dev/fuse`` on ours, and what passes between.

Owns the pump and pyfuse3's session; what happens to a message is :mod:`.exchange`'s.
Knows nothing of images, caches or the supervisor, whose part is the *gate*.

libfuse takes an opened device for a mount point named ``/dev/fd/N`` (``fuse_session_mount``), and
reads one message at a time, which SOCK_SEQPACKET keeps apart.

INVARIANT: libfuse's writes to the socket never find it full: an answer would be lost and its reader
wait for ever (libfuse does not try again). So its buffer has room for every pyfuse3 task to answer
with the largest message, twice over.

INVARIANT: a request that has been read from the device is passed on, whatever is cancelled.
"""

import errno
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Protocol

import pyfuse3
import trio

from cachefs.kernel import device as fuse_device
from cachefs.kernel import mounting, wire
from cachefs.kernel.mounting import MountOptions

from .backing import Backing, Guarded, NoBacking
from .base import SO_RCVBUFFORCE, SO_SNDBUFFORCE, SOCKET_BUFFER, TransportInfo
from .exchange import MAX_BACKGROUND, MESSAGE_MAX, Exchange
from .notify import Notifier
from .open_table import OpenTable
from .passthrough import Passthrough

log = logging.getLogger(__name__)

_BATCH = 32  # requests between two checkpoints
_READ_TIME = 0.002  # seconds of READs between two looks for what goes before them
_LOOKS = 12  # for what follows a request that was answered here: it comes in some 20 us,
# and a turn of the event loop takes as long
_PATIENCE = 3  # turns of the event loop in which to look for more before sleeping
_INTERRUPT_POLL = 0.1  # seconds
_INTERRUPT_SHARE = (
    10  # times as long as looking at all who wait took is served before the next look
)
TASKS: Final = 2000
"""pyfuse3's handlers at once: more requests wait, whatever they are, so it is more than can wait
for a source that has stalled: :data:`MAX_BACKGROUND` of readahead, and one of each reader. A
handler that waits takes some pages."""


class Gate(Protocol):
    """When this worker may serve, and who wants to hear that it does."""

    async def wait_turn(self) -> None:
        """Return once no other worker reads the device."""

    async def take_over(self, open_nodes: Mapping[int, int], *, first: bool) -> None:
        """Our turn has come, and no request is answered before this returns. *open_nodes* are the
        nodes that earlier workers left open, and how often; *first* says that there were none."""

    def ready(self) -> None:
        """This worker answers requests now."""

    def unmounted(self) -> None:
        """The filesystem is gone; this worker ends."""


class OpenGate:
    """The gate of a process that has the device to itself."""

    async def wait_turn(self) -> None:
        """It is always our turn."""

    async def take_over(self, open_nodes: Mapping[int, int], *, first: bool) -> None:
        """There is nothing to take over."""

    def ready(self) -> None:
        """Nobody asked."""

    def unmounted(self) -> None:
        """Nobody asked."""


class RelayTransport:
    """See :class:`cachefs.transport.base.Transport`. *device* is mounted or about to be,
    non-blocking, and stays the caller's; *table_fd* is an :class:`OpenTable`, as the last worker
    left it; *lifeline* is for the :class:`~cachefs.transport.notify.Notifier`."""

    def __init__(
        self,
        device: int,
        table_fd: int,
        info: TransportInfo,
        *,
        mountpoint: str,
        backing: Backing | None = None,
        read_ahead_kib: int = MountOptions().read_ahead_kib,
        gate: Gate | None = None,
        quarantine: bool = False,
        lifeline: int = -1,
    ) -> None:
        self.info = info
        self._device = device
        self._connection = fuse_device.Connection(device)
        self._mountpoint = mountpoint
        self._read_ahead_kib = read_ahead_kib
        self._gate = gate or OpenGate()
        self._table = OpenTable(table_fd)
        guarded = Guarded(backing or NoBacking())
        self._opens = Passthrough(self._connection, self._table, passthrough=info.passthrough)
        self._notifier = Notifier(device, lifeline)
        self._exchange = Exchange(
            self._connection,
            self._table,
            self._opens,
            guarded,
            send=self._send_soon,
            notify=self._notifier.send,
            passthrough=info.passthrough,
            quarantine=quarantine,
        )
        self._ours: socket.socket | None = None
        self._backlog: deque[bytes] = deque()
        self._poller = select.epoll()  # of both sides
        self._draining = False
        self._finished = trio.Event()
        self._idle = trio.Event()
        self._init_answered = trio.Event()
        self._watch = trio.Event()

    # --- the interface ------------------------------------------------------------------------

    async def serve(
        self,
        operations: pyfuse3.Operations,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See :meth:`cachefs.transport.base.Transport.serve`."""
        self._ours, libfuses = _socketpair()
        pyfuse3.init(operations, f"/dev/fd/{libfuses.detach()}", set())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_pyfuse3)
                replayed = await self._replay_init() if self._table.init_request else b""
                await self._gate.wait_turn()
                first = self._table.workers == 0
                self._take_over(replayed)
                await self._gate.take_over(self.open_nodes, first=first)
                self._poller.register(self._ours, select.EPOLLIN)
                self._poller.register(self._device, select.EPOLLIN)
                nursery.start_soon(self._pump)
                nursery.start_soon(self._watch_interrupted)
                if not self._table.init_answered:
                    await self._init_answered.wait()
                await trio.to_thread.run_sync(
                    mounting.tune, self._mountpoint, self._read_ahead_kib, MAX_BACKGROUND
                )
                self._notifier.start()
                self._gate.ready()
                task_status.started()
                await self._finished.wait()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            self._notifier.close()
            pyfuse3.close(unmount=False)
            self._poller.close()
            self._ours.close()

    async def drain(self, seconds: float) -> bool:
        """See :meth:`cachefs.transport.base.Transport.drain`."""
        if not self._draining and not self._poller.closed:
            self._draining = True
            self._poller.unregister(self._device)
        with trio.move_on_after(seconds):
            while not self._exchange.idle:
                self._idle = trio.Event()
                await self._idle.wait()
        self._finished.set()
        return self._exchange.idle

    def invalidate_inode(self, nodeid: int, *, attr_only: bool = False) -> None:
        """See :meth:`cachefs.transport.base.Transport.invalidate_inode`."""
        self._notifier.send(wire.inval_inode(nodeid, -1 if attr_only else 0, 0))

    def invalidate_entry(self, parent: int, name: bytes, deleted: int = 0) -> None:
        """See :meth:`cachefs.transport.base.Transport.invalidate_entry`."""
        self._notifier.send(wire.forget_entry(parent, name, deleted))

    @property
    def open_nodes(self) -> dict[int, int]:
        """Nodes that are open, and how often; of earlier workers, too."""
        return self._opens.nodes()

    @property
    def reads_here(self) -> int:
        """READs that the relay has answered by itself."""
        return self._exchange.reads_here

    # --- starting -----------------------------------------------------------------------------

    async def _run_pyfuse3(self) -> None:
        await pyfuse3.main(1, TASKS)
        if not self._finished.is_set():
            raise RuntimeError("pyfuse3 stopped by itself")

    async def _replay_init(self) -> bytes:
        """Shake hands with libfuse as the kernel once did with the first worker's; the answer."""
        assert self._ours is not None
        self._ours.send(self._exchange.replay_init())
        await trio.lowlevel.wait_readable(self._ours)
        reply = memoryview(bytearray(self._ours.recv(4096)))
        self._exchange.amend_init(reply)
        return bytes(reply)

    def _take_over(self, replayed: bytes) -> None:
        """Finish what the last worker had begun, and have its unanswered requests resent."""
        again = self._table.workers > 0
        self._table.workers += 1
        if replayed and not self._table.init_answered:
            with suppress(FileNotFoundError):  # the kernel has the last worker's
                self._connection.write(replayed)
            self._table.init_answered = True
        if again:
            self._opens.recover()
            try:
                self._connection.write(wire.resend())
            except OSError as error:
                log.warning("the kernel does not resend what the last worker left: %s", error)

    # --- pumping ------------------------------------------------------------------------------

    async def _pump(self) -> None:
        """Pass messages both ways, in one task: an answer is often there a turn of the event loop
        after its request was passed on, and the next request a turn after that; looking for them is
        cheaper than being woken by them (4 times the rate for small reads answered here)."""
        exchange, ours = self._exchange, self._ours
        assert ours is not None
        buffer = bytearray(MESSAGE_MAX)
        view = memoryview(buffer)
        buffers = [buffer]
        patience = 0
        while True:
            busy = await self._take_requests(view, buffers)
            if self._finished.is_set():
                return
            busy |= await self._serve_reads()
            while (n := _receive(ours, buffer)) > 0:
                busy = True
                exchange.reply(view[:n])
            if n == 0:
                return
            if busy:
                patience = _PATIENCE
                self._after_work()
            if patience and (busy or not exchange.idle):
                patience -= 1
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self._poller)

    async def _take_requests(self, view: memoryview, buffers: list[bytearray]) -> bool:
        """Take some requests from the device, if any wait; whether any did. At its end the
        transport has finished."""
        busy, looks = False, 0
        for _ in range(_BATCH):
            while (n := self._read_device(buffers)) < 0 and looks:
                looks -= 1
            if n < 0:
                break
            if n == 0:
                self._gate.unmounted()
                self._finished.set()
                break
            busy = True
            if self._exchange.request(view[:n]):
                await self._pass_on(view[:n])
            elif not self._exchange.reads_queued:
                looks = _LOOKS
        return busy

    async def _serve_reads(self) -> bool:
        """Serve some READs, if any wait; whether any did."""
        until = time.perf_counter() + _READ_TIME
        served = False
        while self._exchange.reads_queued and not (served and time.perf_counter() > until):
            served = True
            message = self._exchange.serve_read()
            if message is not None:
                await self._pass_on(message)
        return served

    def _read_device(self, buffers: list[bytearray]) -> int:
        """The length of the next message; -1 for none now, 0 when there will be none any more."""
        if self._draining:
            return -1
        while True:
            try:
                return os.readv(self._device, buffers)
            except BlockingIOError:
                return -1
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return 0
                if error.errno not in (errno.ENOENT, errno.EINTR):
                    raise  # those are requests withdrawn while they were read

    async def _pass_on(self, message: bytes | memoryview) -> None:
        assert self._ours is not None
        while True:
            try:
                while self._backlog:
                    self._ours.send(self._backlog[0])
                    self._backlog.popleft()
                self._ours.send(message)
                return
            except BlockingIOError:
                with trio.CancelScope(shield=True):
                    await trio.lowlevel.wait_writable(self._ours)

    def _after_work(self) -> None:
        if self._exchange.idle:
            self._idle.set()
        if self._exchange.waiting:
            self._watch.set()
        if self._table.init_answered:
            self._init_answered.set()

    async def _watch_interrupted(self) -> None:
        while True:
            await self._watch.wait()
            self._watch = trio.Event()
            while self._exchange.waiting:
                began = time.perf_counter()
                self._exchange.watch_reads()
                self._exchange.check_interrupted()
                took = time.perf_counter() - began
                await trio.sleep(max(_INTERRUPT_POLL, took * _INTERRUPT_SHARE))

    def _send_soon(self, message: bytes) -> None:
        """Send to libfuse, or with the next request where there is no room now."""
        assert self._ours is not None
        if not self._backlog:
            try:
                self._ours.send(message)
                return
            except BlockingIOError:
                pass
        self._backlog.append(message)


def _socketpair() -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BUFFER)
        end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BUFFER)
        end.setblocking(False)
    return ends


def _receive(sock: socket.socket, buffer: bytearray) -> int:
    """The length of the next message; -1 for none now, 0 when the other end is closed."""
    try:
        return sock.recv_into(buffer)
    except BlockingIOError:
        return -1


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception that one would have seen without nurseries: no group leaves the transport."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        real = [inner for inner in error.exceptions if not isinstance(inner, trio.Cancelled)]
        error = (real or list(error.exceptions))[0]
    return error
