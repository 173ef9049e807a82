"""Plain pyfuse3 behind the transport's interface: libfuse mounts and reads the device itself.

Owns pyfuse3's session. For a user who may not mount, or a kernel without passthrough; nothing of a
mount outlives its worker here. Knows nothing of messages.
"""

import contextlib
import functools
import logging
import signal
from collections.abc import Iterator

import pyfuse3
import trio

from cachefs.kernel import device as fuse_device
from cachefs.kernel import mounting, wire
from cachefs.kernel.mounting import MountOptions

from .base import TransportInfo
from .exchange import MAX_BACKGROUND
from .libfuse import explained
from .notify import Notifier
from .relay import TASKS, Gate, OpenGate, first_error

log = logging.getLogger(__name__)

STUCK = 0.5
"""Seconds after which a read of the device is taken to be in vain, and interrupted."""


class PlainTransport:
    """See :class:`cachefs.transport.base.Transport`."""

    def __init__(
        self,
        info: TransportInfo,
        *,
        mountpoint: str,
        options: MountOptions | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.info = info
        self._mountpoint = mountpoint
        self._options = options or MountOptions()
        self._gate = gate or OpenGate()
        self._notifier: Notifier | None = None
        self._draining = False
        self._done = trio.Event()
        self._scope = trio.CancelScope()

    async def serve(
        self,
        operations: pyfuse3.Operations,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See :meth:`cachefs.transport.base.Transport.serve`. Mounts; where libfuse cannot, raises
        :class:`~cachefs.errors.MountError` with its reason."""
        await self._gate.wait_turn()
        await self._gate.take_over({}, first=True)
        begin = functools.partial(pyfuse3.init, operations, self._mountpoint, self._words())
        explained(self._mountpoint, begin)
        self._begin_notifying()
        unmount = True
        answered = trio.Event()
        operations.init = answered.set  # type: ignore[method-assign]  # pyfuse3's own hook
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._started, answered, task_status)
                nursery.start_soon(_interrupt_reads_in_vain)
                with self._scope:
                    await pyfuse3.main(1, TASKS)
                unmount = self._draining
                if not self._draining:
                    self._gate.unmounted()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            self._done.set()
            if self._notifier is not None:
                self._notifier.close()
            pyfuse3.close(unmount=unmount)

    def _begin_notifying(self) -> None:
        """Through a clone of libfuse's device: when this process is killed, the kernel ends what it
        had read, although the notifying process has the connection still."""
        for device in fuse_device.devices():
            self._notifier = Notifier(fuse_device.clone(device), None)
            self._notifier.start()
            return
        log.error("libfuse's device is not to be found: evicted names are known for a while yet")

    async def _started(self, answered: trio.Event, task_status: trio.TaskStatus[None]) -> None:
        await answered.wait()  # the answer to INIT resets what is tuned
        await trio.to_thread.run_sync(
            mounting.tune, self._mountpoint, self._options.read_ahead_kib, MAX_BACKGROUND
        )
        self._gate.ready()
        task_status.started()

    async def drain(self, seconds: float) -> bool:
        """See :meth:`cachefs.transport.base.Transport.drain`. Handlers under way finish or, after
        *seconds*, are cancelled; what they should have answered fails with the mount."""
        self._draining = True
        pyfuse3.terminate()
        with trio.move_on_after(seconds) as waiting:
            await self._done.wait()
        self._scope.cancel()
        return not waiting.cancelled_caught

    def invalidate_inode(self, nodeid: int, *, attr_only: bool = False) -> None:
        """See :meth:`cachefs.transport.base.Transport.invalidate_inode`."""
        if self._notifier is not None:
            self._notifier.send(wire.inval_inode(nodeid, -1 if attr_only else 0, 0))

    def invalidate_entry(self, parent: int, name: bytes, deleted: int = 0) -> None:
        """See :meth:`cachefs.transport.base.Transport.invalidate_entry`."""
        if self._notifier is not None:
            self._notifier.send(wire.forget_entry(parent, name, deleted))

    def _words(self) -> set[str]:
        options = self._options
        words = {
            f"fsname={options.source}",
            f"subtype={options.subtype}",
            *options.extra,
        }
        if options.allow_other:
            words.add("allow_other")
        if options.default_permissions:
            words.add("default_permissions")
        return words


async def _interrupt_reads_in_vain() -> None:
    """Have whatever stops the event loop for :data:`STUCK` seconds interrupted, until cancelled.

    pyfuse3 waits for the device to be readable and then reads it with the interpreter held. When
    the request has been withdrawn in between (its caller was killed, and nobody had read it), that
    read waits for the next one, which may not come: all of the process stands still. The device
    cannot be made not to block, for pyfuse3 fails on EAGAIN; EINTR it takes for nothing.
    """
    with _alarm():
        while True:
            signal.setitimer(signal.ITIMER_REAL, STUCK, STUCK)
            await trio.sleep(STUCK / 3)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """SIGALRM does nothing but interrupt while the block runs, and no timer is left after it."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
