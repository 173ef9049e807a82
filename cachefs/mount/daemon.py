"""The composition root: chooses driver, sources, tree and transport, and owns the nursery and the
signals.

How it ends: ``umount`` ends the transport, whose return cancels the rest; SIGTERM and SIGINT end
the fetches first, so that nobody waits any more, then the transport, which unmounts. Either way
open images are closed and the index last."""

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import trio

from cachefs.cache import Limits, Store
from cachefs.cache.lock import own
from cachefs.config import Config
from cachefs.control import Operator, Worker, build
from cachefs.control.operator import Transport as TransportStatus
from cachefs.drivers import Entry
from cachefs.errors import MountError
from cachefs.evictor import Evictor
from cachefs.fetcher import Fetcher, Flight, Settings
from cachefs.fuse import Operations
from cachefs.mount.checks import group_id
from cachefs.sources import open_source
from cachefs.transport.base import MountOptions, Transport, TransportInfo
from cachefs.transport.plain import PlainTransport
from cachefs.vfs.images import Images
from cachefs.vfs.inodes import IMAGES_INODE, ROOT_INODE, Room, Serials, join
from cachefs.vfs.nodes import FixedDirectory, Space
from cachefs.vfs.opened import OpenImages
from cachefs.vfs.tree import Nodes, Tree, fixed

log = logging.getLogger(__name__)

DRAIN = 5.0
"""Seconds that requests under way have to end when the daemon is told to."""


async def serve(config: Config, ready: Callable[[], None]) -> None:
    """Serve *config*'s mount until it is unmounted or the process is told to end.

    Calls *ready* once the mount answers. Raises CacheFSError or OSError, maybe in a group, when it
    cannot be mounted; then nothing stays mounted.
    """
    source = open_source(config.source, config.fallbacks)
    limits = Limits(config.max_size, config.min_free)
    store = await trio.to_thread.run_sync(
        lambda: Store(config.cache_dir, limits, driver=config.driver)
    )
    claim = _claim(store.layout.private_dir)
    try:
        fetcher = Fetcher(
            store,
            source,
            Settings(fetches=config.max_fetches, keep=config.on_last_close == "keep"),
            bandwidth=config.bandwidth,
            prefetch_bandwidth=config.prefetch_bandwidth,
        )
        daemon = Daemon(config, store, fetcher)
        await daemon.run(ready)
    finally:
        store.close()
        os.close(claim)


class Daemon:
    """One mount of one cache directory."""

    def __init__(self, config: Config, store: Store, fetcher: Fetcher) -> None:
        self._config = config
        self._store = store
        self._fetcher = fetcher
        self._evictor = Evictor(store, config.stall_time)
        serials = Serials()
        self._opened = OpenImages(store, fetcher, lasting=False)
        self._images = Images(
            store, fetcher, serials, self._opened, fetch_on_miss=config.on_miss == "fetch"
        )
        self._transport = _transport(config)
        info = self._transport.info
        operator = Operator(
            store,
            fetcher,
            self._evictor,
            self._images,
            worker=Worker(os.getpid(), time.time()),
            transport=TransportStatus(info.mode, info.passthrough, info.why),
        )
        tree = _tree(self._images, operator, serials, group_id(config))
        self._operations = Operations(tree, serials, self._space)
        self._fetching = trio.CancelScope()
        self._serving = trio.Event()
        store.on_evicted(self._evicted)
        fetcher.on_ended(self._flight_ended)

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until unmounted or told to end."""
        try:
            async with trio.open_nursery() as nursery:
                # First: a signal that came between the mount and this would leave a dead mount.
                await nursery.start(self._watch_signals)
                await nursery.start(self._fetch)
                nursery.start_soon(self._evictor.run)
                await nursery.start(self._answer, nursery)
                self._serving.set()
                log.info("serving %s at %s", self._config.source, self._config.mountpoint)
                ready()
        finally:
            self._operations.handles.close()
        log.info("%s is unmounted", self._config.mountpoint)

    async def _fetch(self, task_status: trio.TaskStatus[None]) -> None:
        with self._fetching:
            await self._fetcher.run(task_status)

    async def _answer(self, nursery: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        await self._transport.serve(self._operations, task_status=task_status)
        nursery.cancel_scope.cancel()

    async def _watch_signals(self, task_status: trio.TaskStatus[None]) -> None:
        """End at a signal; one that comes while the mount is being made waits until it is."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            await self._serving.wait()
            async for number in signals:
                log.info("ending: %s", signal.Signals(number).name)
                self._fetching.cancel()
                await self._transport.drain(DRAIN)

    # What others have to know

    def _evicted(self, entry: Entry) -> None:
        """In the evicting thread: the name is gone for the kernel at once."""
        inode = join(Room.CACHED, entry.inode)
        self._transport.invalidate_entry(IMAGES_INODE, entry.image_id.encode(), inode)

    def _flight_ended(self, flight: Flight) -> None:
        """The name of the image that was being fetched means another node now, or none."""
        for inode in self._images.flight_ended(flight):
            self._transport.invalidate_inode(inode)
        self._transport.invalidate_entry(IMAGES_INODE, flight.image.image_id.encode())

    async def _space(self) -> Space:
        usage = await trio.to_thread.run_sync(self._store.usage)
        return Space(usage.limit, usage.free, self._store.totals().images)


def _tree(images: Images, operator: Operator, serials: Serials, gid: int | None) -> Tree:
    control, nodes, rooms = build(operator, serials, gid)
    root = FixedDirectory(ROOT_INODE)
    root.add("images", images)
    root.add("control", control)
    return Tree(
        {
            Room.FIXED: fixed([root, images, *nodes]),
            Room.CACHED: Nodes(images.cached_node),
            Room.LAZY: Nodes(images.lazy_node, images.forget_lazy),
            **rooms,
        }
    )


def _transport(config: Config) -> Transport:
    extra = set(config.options) - {"allow_other", "default_permissions"}
    options = MountOptions(
        allow_other=os.getuid() == 0 or "allow_other" in config.options,
        extra=tuple(sorted(extra)),
    )
    info = TransportInfo("plain", passthrough=False, why="the relay is not built yet")
    return PlainTransport(info, mountpoint=str(config.mountpoint), options=options)


def _claim(private: Path) -> int:
    """The descriptor that makes this process the only daemon of the cache directory."""
    fd = os.open(private / "daemon", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        own(fd)
    except BlockingIOError:
        os.close(fd)
        raise MountError(f"another daemon is using the cache directory {private.parent}") from None
    return fd
