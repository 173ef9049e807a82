"""A worker's life: the nursery, the signals, the transport and the filesystem behind it.

How it begins: its heart beats, then everything is made ready; nothing is fetched, evicted or
answered before this worker's turn has come (another one may still be at it). Then what an earlier
worker of the mount had open is taken up, and requests are answered.

How it ends: ``umount``, the supervisor's word, or SIGTERM end the transport, whose return cancels
the rest; what has been fetched is kept, open images are closed and the index last."""

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import trio

from cachefs.cache import Layout, Store
from cachefs.control import TransportStatus, WorkerStatus
from cachefs.errors import MountError
from cachefs.kernel.ghosts import lock_holder
from cachefs.mount.attachment import Attachment
from cachefs.mount.filesystem import Filesystem, limits_of
from cachefs.settings import RunningSettings, Settings
from cachefs.sources import open_source
from cachefs.vfs.shown import Shown

log = logging.getLogger(__name__)

DRAIN = 5.0
"""Seconds that requests under way have to end when the worker is told to leave."""


FIRST_PATIENCE = 30.0
"""Seconds that the first worker of a mount waits for the cache directory's lock, while a stranger
holds it; then the command that mounts says so. A later one, whose mount has readers, goes on."""


async def serve(
    running: RunningSettings, attachment: Attachment, serving: Callable[[], None]
) -> None:
    """Serve the mount of *running* until it is unmounted or the process is told to leave. *serving*
    is called once requests are answered.

    Raises CacheFSError or OSError, maybe in a group, when it cannot.
    """
    settings, info = running.current, attachment.info
    async with trio.open_nursery() as nursery:
        await nursery.start(attachment.run)
        source = open_source(settings.source, settings.fallbacks, timeout=settings.timeout)
        with attachment.making_ready() as making_ready:
            store = await _open_store(settings, patient=attachment.restarts > 0)
        if making_ready.cancelled_caught:
            nursery.cancel_scope.cancel()
            return
        try:
            filesystem = Filesystem(
                running,
                store,
                source,
                worker=WorkerStatus(
                    os.getpid(), time.time(), attachment.restarts, lambda: attachment.supervisor
                ),
                transport=TransportStatus(info.mode, info.passthrough, info.why),
                shown=Shown(attachment.shown),
            )
            await Daemon(filesystem, attachment).run(serving)
            log.info("worker %d has left %s", os.getpid(), settings.mountpoint)
        finally:
            store.close()
        nursery.cancel_scope.cancel()


async def _open_store(settings: Settings, *, patient: bool) -> Store:
    """The cache, once its directory's lock can be had. Raises MountError where a stranger keeps it
    and we are not *patient*. Cancelled, it leaves a thread behind that waits on."""
    async with trio.open_nursery() as nursery:
        if not patient:
            nursery.start_soon(_complain, Layout(settings.cache_dir).lock_file)
        store = await trio.to_thread.run_sync(
            lambda: Store(
                settings.cache_dir,
                limits_of(settings),
                driver=settings.driver,
                adopt=settings.adopt,
            ),
            abandon_on_cancel=True,
        )
        nursery.cancel_scope.cancel()
        return store


async def _complain(lock: Path) -> None:
    while True:
        await trio.sleep(FIRST_PATIENCE)
        holder = await trio.to_thread.run_sync(lock_holder, lock)
        if holder is not None and holder[0] != os.getpid():
            raise MountError(
                f"process {holder[0]} ({holder[1]}) has held the lock on {lock} for"
                f" {FIRST_PATIENCE:.0f} s: end it, or mount when it is done"
            )


class Daemon:
    """One worker of one mount of one cache directory."""

    def __init__(self, filesystem: Filesystem, attachment: Attachment) -> None:
        self._filesystem = filesystem
        self._attachment = attachment
        self._transport = attachment.open_transport(filesystem.image_files)
        filesystem.connect(self._transport)

    async def run(self, serving: Callable[[], None]) -> None:
        """Serve until unmounted or told to leave."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._watch_signals)
            self._attachment.on_turn(self._begin)
            await nursery.start(self._answer)
            serving()
        if self._attachment.is_unmounted:  # else what is open is the next worker's
            self._filesystem.end()

    async def _answer(self, task_status: trio.TaskStatus[None]) -> None:
        await self._transport.serve(self._filesystem.operations, task_status=task_status)
        self._nursery.cancel_scope.cancel()

    async def _begin(self, open_nodes: Mapping[int, int], *, first: bool) -> None:
        await self._filesystem.begin(self._nursery, open_nodes, first=first)

    async def _watch_signals(self) -> None:
        """A worker that is ended alone, without its supervisor, is replaced."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("leaving: %s", signal.Signals(number).name)
                await self._transport.drain(DRAIN)
