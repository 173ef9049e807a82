"""The worker's end of the supervisor: what it inherits, its heartbeat, the commands it takes.

Owns the control socket in the worker. The composition root calls
:meth:`Attachment.from_environment` and builds its transport with :meth:`Attachment.open_transport`;
it knows nothing of pyfuse3 itself.

The heartbeat is a trio task: it stops when the event loop does, whether or not anyone uses the
filesystem, and goes on when the filesystem waits for a slow source. INVARIANT: it beats before this
process waits for anything; what is waited for before there is a transport is waited for in
:meth:`Attachment.making_ready`, so that the supervisor knows.
"""

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol

import trio

from cachefs.supervise.protocol import (
    BEAT,
    DRAIN,
    DRAIN_SECONDS,
    ENVIRONMENT,
    GO,
    READY,
    STANDBY,
    STOP,
    UNMOUNTED,
    WAITING,
    Inheritance,
    unseal,
)
from cachefs.transport.backing import Backing
from cachefs.transport.base import Transport, TransportInfo
from cachefs.transport.plain import PlainTransport
from cachefs.transport.relay import RelayTransport

log = logging.getLogger(__name__)


class Begin(Protocol):
    """What a filesystem does when its turn has come: see
    :meth:`cachefs.transport.relay.Gate.take_over`."""

    async def __call__(self, open_nodes: Mapping[int, int], *, first: bool) -> None:
        """See there."""


async def _nothing(open_nodes: Mapping[int, int], *, first: bool) -> None:
    pass


class _Drains(Protocol):
    async def drain(self, seconds: float) -> bool: ...


class Attachment:
    """A worker's tie to its supervisor; also its transport's
    :class:`cachefs.transport.relay.Gate`."""

    def __init__(self, inheritance: Inheritance) -> None:
        self.inheritance = inheritance
        self._control = socket.socket(fileno=inheritance.control)
        self._control.setblocking(False)
        for fd in inheritance.descriptors:
            os.set_inheritable(fd, False)
        self._turn = trio.Event()
        self._begin: Begin = _nothing
        self._transport: _Drains | None = None
        self._making_ready: trio.CancelScope | None = None
        self._supervisor: int | None = os.getppid()
        self.is_unmounted = False
        if inheritance.turn:
            self._turn.set()

    @classmethod
    def from_environment(cls) -> "Attachment | None":
        """The tie to the supervisor that started this process, or None where none did. Takes the
        descriptors over and the variable away, so call it once."""
        text = os.environ.pop(ENVIRONMENT, None)
        return None if text is None else cls(Inheritance.from_text(text))

    @property
    def info(self) -> TransportInfo:
        """What the supervisor's probe found."""
        return self.inheritance.info

    @property
    def document(self) -> bytes:
        """What the supervisor was given for its workers; empty where that was nothing."""
        return unseal(self.inheritance.document)

    @property
    def shown(self) -> int:
        """The descriptor of what is being read of control files; -1 where nobody reads on."""
        return self.inheritance.shown

    @property
    def restarts(self) -> int:
        """How many workers this mount has had before."""
        return self.inheritance.restarts

    @property
    def supervisor(self) -> int | None:
        """The process that looks after this one; None once it is gone. Nothing replaces it: the
        mount lasts as long as this worker does."""
        return self._supervisor

    @contextmanager
    def making_ready(self) -> Iterator[trio.CancelScope]:
        """For the block, the supervisor knows that this worker waits for others before it can
        serve, and does not count the time against it; the word to leave cancels the block."""
        with trio.CancelScope() as scope:
            self._making_ready = scope
            try:
                yield scope
            finally:
                self._making_ready = None

    def open_transport(self, backing: Backing) -> Transport:
        """The transport over what was inherited, which the word to leave drains."""
        self._transport = transport = self._open_transport(backing)
        return transport

    def _open_transport(self, backing: Backing) -> Transport:
        inherited = self.inheritance
        if inherited.info.mode == "plain":
            return PlainTransport(
                inherited.info,
                mountpoint=inherited.mountpoint,
                options=inherited.options,
                gate=self,
            )
        return RelayTransport(
            inherited.device,
            inherited.table,
            inherited.info,
            mountpoint=inherited.mountpoint,
            backing=backing,
            read_ahead_kib=inherited.options.read_ahead_kib,
            gate=self,
            quarantine=inherited.quarantine,
            lifeline=inherited.lifeline,
        )

    async def wait_turn(self) -> None:
        """See :class:`cachefs.transport.relay.Gate`."""
        if not self._turn.is_set():
            self._tell(STANDBY)
        await self._turn.wait()

    def on_turn(self, begin: Begin) -> None:
        """Have *begin* awaited when our turn has come, before any request is answered."""
        self._begin = begin

    async def take_over(self, open_nodes: Mapping[int, int], *, first: bool) -> None:
        """See :class:`cachefs.transport.relay.Gate`."""
        await self._begin(open_nodes, first=first)

    def ready(self) -> None:
        """See :class:`cachefs.transport.relay.Gate`."""
        self._tell(READY)

    def unmounted(self) -> None:
        """See :class:`cachefs.transport.relay.Gate`. Without this word, a worker that exits is one
        that died."""
        self.is_unmounted = True
        self._tell(UNMOUNTED)

    async def run(
        self,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Beat, and obey the supervisor, until cancelled. Losing the supervisor is logged and no
        more: files that are open are worth more than being looked after."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            task_status.started()
            while True:
                await trio.lowlevel.wait_readable(self._control)
                try:
                    word = self._control.recv(64)
                except ConnectionError:
                    word = b""
                if not word:
                    log.error("the supervisor is gone; going on without it")
                    self._supervisor = None
                    nursery.cancel_scope.cancel()
                elif word == GO:
                    self._turn.set()
                elif word in (DRAIN, STOP):
                    self._leave(nursery)

    def _leave(self, nursery: trio.Nursery) -> None:
        if self._making_ready is not None:
            self._making_ready.cancel()
        elif self._transport is not None:
            nursery.start_soon(self._transport.drain, DRAIN_SECONDS)

    async def _beat(self) -> None:
        while True:
            self._tell(BEAT if self._making_ready is None else WAITING)
            await trio.sleep(self.inheritance.beat_interval)

    def _tell(self, word: bytes) -> None:
        # A supervisor that does not listen learns nothing from one more word.
        with suppress(BlockingIOError, ConnectionError):
            self._control.send(word)
