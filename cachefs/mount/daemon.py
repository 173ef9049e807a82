"""The composition root: chooses driver, sources, tree and transport, and owns the nursery and the
signals.

How it begins: everything is made ready first, nothing is fetched, evicted or answered before this
worker's turn has come (another one may still be at it). Then what an earlier worker of the mount
had open is taken up, and requests are answered.

How it ends: ``umount``, the supervisor's word, or SIGTERM end the transport, whose return cancels
the rest; what has been fetched is kept, open images are closed and the index last."""

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping

import trio

from cachefs.cache import Held, Layout, Limits, Store
from cachefs.control import Operator, TransportStatus, WorkerStatus, build
from cachefs.drivers import Entry
from cachefs.errors import CacheFSError, StaleError
from cachefs.evictor import Evictor
from cachefs.fetcher import Fetcher, FetcherPortal, FetchSettings, Flight
from cachefs.fuse import Operations
from cachefs.mount.attachment import Attachment
from cachefs.mount.checks import group_id
from cachefs.settings import RunningSettings, Settings
from cachefs.sources import open_source
from cachefs.vfs.images import Images
from cachefs.vfs.inodes import IMAGES_INODE, ROOT_INODE, Room, Serials, join
from cachefs.vfs.nodes import FixedDirectory, Node, Space
from cachefs.vfs.opened import OpenImages
from cachefs.vfs.tree import Nodes, Tree, fixed

log = logging.getLogger(__name__)

DRAIN = 5.0
"""Seconds that requests under way have to end when the worker is told to leave."""


async def serve(
    running: RunningSettings, attachment: Attachment, serving: Callable[[], None]
) -> None:
    """Serve the mount of *running* until it is unmounted or the process is told to leave. *serving*
    is called once requests are answered.

    Raises CacheFSError or OSError, maybe in a group, when it cannot.
    """
    config = running.current
    source = open_source(config.source, config.fallbacks, timeout=config.timeout)
    store = await trio.to_thread.run_sync(
        lambda: Store(config.cache_dir, _limits(config), driver=config.driver)
    )
    try:
        fetcher = Fetcher(
            store,
            source,
            FetchSettings(fetches=config.max_fetches, keep=config.on_last_close == "keep"),
            bandwidth=config.bandwidth,
            prefetch_bandwidth=config.prefetch_bandwidth,
        )
        await Daemon(running, store, fetcher, attachment).run(serving)
    finally:
        store.close()


class Daemon:
    """One worker of one mount of one cache directory."""

    def __init__(
        self, running: RunningSettings, store: Store, fetcher: Fetcher, attachment: Attachment
    ) -> None:
        self._running = running
        config = running.current
        self._store = store
        self._fetcher = fetcher
        self._attachment = attachment
        self._evictor = Evictor(store, config.stall_time)
        serials, info = Serials(), attachment.info
        self._held = Held(Layout(config.cache_dir))
        self._opened = OpenImages(store.quick, self._held, fetcher, lasting=info.mode == "relay")
        self._images = Images(
            store.quick, fetcher, serials, self._opened, fetch_on_miss=config.on_miss == "fetch"
        )
        self._transport = attachment.open_transport(self._opened)
        operator = Operator(
            store,
            FetcherPortal(fetcher),
            self._evictor,
            self._images,
            running,
            worker=WorkerStatus(os.getpid(), time.time(), attachment.restarts, os.getppid()),
            transport=TransportStatus(info.mode, info.passthrough, info.why),
        )
        tree = _tree(self._images, self._opened, operator, serials, group_id(config))
        self._operations = Operations(tree, serials, self._space)
        store.on_evicting(self._opened.hold)
        store.on_evicted(self._evicted)
        fetcher.on_ended(self._flight_ended)
        running.on_change(self._settings_changed)

    async def run(self, serving: Callable[[], None]) -> None:
        """Serve until unmounted or told to leave."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._watch_signals)
            nursery.start_soon(self._attachment.run, self._transport)
            self._attachment.on_turn(self._begin)
            await nursery.start(self._answer)
            serving()
        if self._attachment.is_unmounted:  # else what is open is the next worker's
            self._operations.handles.close()
            self._held.clear()
        log.info("worker %d has left %s", os.getpid(), self._running.current.mountpoint)

    async def _answer(self, task_status: trio.TaskStatus[None]) -> None:
        await self._transport.serve(self._operations, task_status=task_status)
        self._nursery.cancel_scope.cancel()

    async def _begin(self, open_nodes: Mapping[int, int], *, first: bool) -> None:
        """Our turn: nobody else serves the mount now, and nothing is answered before this
        returns."""
        self._opened.drop_others(() if first else open_nodes)
        await trio.to_thread.run_sync(self._running.take_up)
        await self._nursery.start(self._fetcher.run)
        self._nursery.start_soon(self._evictor.run)
        self._nursery.start_soon(self._opened.idle.close_old)
        for inode, opens in open_nodes.items():
            try:
                file = await self._opened.take_up(inode)
            except (CacheFSError, OSError) as error:
                log.warning("what was open as %d cannot be read on: %s", inode, error)
            else:
                if file is not None:
                    self._operations.handles.add(file, inode, opens)
        log.info("serving %s at %s", self._fetcher.source.url, self._running.current.mountpoint)

    async def _watch_signals(self) -> None:
        """Whoever ends the worker alone, and not the supervisor, gets another worker."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("leaving: %s", signal.Signals(number).name)
                await self._transport.drain(DRAIN)

    # What others have to know

    def _settings_changed(self, settings: Settings) -> None:
        """In the changing thread. What is over the new limits is evicted by who changed them."""
        self._store.limits = _limits(settings)
        self._evictor.stall_time = settings.stall_time

    def _evicted(self, entry: Entry) -> None:
        """In the evicting thread: the name is gone for the kernel at once."""
        inode = join(Room.CACHED, entry.inode)
        self._transport.invalidate_entry(IMAGES_INODE, entry.image_id.encode(), inode)

    def _flight_ended(self, flight: Flight) -> None:
        """The name of the image that was being fetched means another node now, or none."""
        self._opened.flight_ended(flight)
        for inode in self._images.flight_ended(flight):
            self._transport.invalidate_inode(inode)
        self._transport.invalidate_entry(IMAGES_INODE, flight.image.image_id.encode())

    async def _space(self) -> Space:
        usage = await trio.to_thread.run_sync(self._store.usage)
        return Space(usage.limit, usage.free, self._store.quick.totals().images)


def _limits(settings: Settings) -> Limits:
    return Limits(settings.max_size, settings.min_free)


def _tree(
    images: Images, opened: OpenImages, operator: Operator, serials: Serials, gid: int | None
) -> Tree:
    control, nodes, rooms = build(operator, serials, gid)

    def lazy_node(serial: int) -> Node:
        try:
            return images.lazy_node(serial)
        except StaleError:
            node = opened.nameless(serial)  # of an earlier worker's time
            if node is None:
                raise
            return node

    root = FixedDirectory(ROOT_INODE)
    root.add("images", images)
    root.add("control", control)
    return Tree(
        {
            Room.FIXED: fixed([root, images, *nodes]),
            Room.CACHED: Nodes(images.cached_node),
            Room.LAZY: Nodes(lazy_node, images.forget_lazy),
            **rooms,
        }
    )
