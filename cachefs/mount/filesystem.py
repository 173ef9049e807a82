"""One worker's filesystem: everything between the transport and the cache directory, put together.

Chooses what stands in the tree and who hears of what. Knows neither a kernel nor a supervisor: a
:class:`Invalidations` is all that it tells of the outside, so that it can be driven by a test."""

import logging
import os
from collections.abc import Mapping
from typing import Protocol

import trio

from cachefs.cache import Held, Layout, Limits, Refusals, Store
from cachefs.control import Operator, TransportStatus, WorkerStatus, build
from cachefs.drivers import Entry
from cachefs.evictor import Evictor
from cachefs.fetcher import Fetcher, FetcherPortal, FetchSettings, Flight
from cachefs.fuse import Operations
from cachefs.mount.checks import group_id
from cachefs.settings import RunningSettings, Settings
from cachefs.sources import Source
from cachefs.vfs.expected import Expected
from cachefs.vfs.hits import Hits
from cachefs.vfs.image_files import ImageFiles
from cachefs.vfs.images import Images
from cachefs.vfs.inodes import IMAGES_INODE, ROOT_INODE, NodeKind, Serials, join
from cachefs.vfs.nodes import FixedDirectory, Node, Ownership, StatFS
from cachefs.vfs.open_files import OpenFiles
from cachefs.vfs.shown import Shown
from cachefs.vfs.takeover import Takeover
from cachefs.vfs.tree import Nodes, Tree, fixed

log = logging.getLogger(__name__)


class Invalidations(Protocol):
    """What has the kernel forget things; see :class:`cachefs.transport.base.Transport`, which is
    one."""

    def invalidate_inode(self, nodeid: int) -> None:
        """Have it forget the attributes and pages of a node."""

    def invalidate_entry(self, parent: int, name: bytes, deleted: int = 0) -> None:
        """Have it forget a name; with *deleted*, the node that stood there."""


class Filesystem:
    """The filesystem over *store*, fed from *source*; *shown* is the mount's, where that outlives
    this worker. *operations* answer requests, *image_files* are the transport's backing,
    *open_files* are what is open."""

    def __init__(
        self,
        running: RunningSettings,
        store: Store,
        source: Source,
        *,
        worker: WorkerStatus,
        transport: TransportStatus,
        shown: Shown | None = None,
    ) -> None:
        settings = running.current
        self._running = running
        self._store = store
        self._fetcher = Fetcher(
            store,
            source,
            FetchSettings(
                fetches=settings.max_fetches,
                keep=settings.on_last_close == "keep",
                room_timeout=settings.timeout,
            ),
            bandwidth=settings.bandwidth,
            prefetch_bandwidth=settings.prefetch_bandwidth,
        )
        self._evictor = Evictor(store, settings.stall_time)
        serials, lasting = Serials(), transport.mode == "relay"
        layout = Layout(settings.cache_dir)
        self._held = Held(layout)
        self._hits = Hits(store.quick)
        self.open_files = OpenFiles(serials)
        ownership = Ownership(
            settings.uid,
            settings.gid,
            settings.mode,
            public=os.getuid() == 0 or "allow_other" in settings.options,
        )
        self.image_files = ImageFiles(
            store.quick,
            self._held,
            self.open_files,
            self._hits,
            lasting=lasting,
            on_close=store.room_changed,
            ownership=ownership,
        )
        self._images = Images(
            store.quick,
            self._fetcher,
            serials,
            self.image_files,
            self._hits,
            expected=Expected(Refusals(layout) if lasting else None),
            fetch_on_miss=settings.on_miss == "fetch",
            ownership=ownership,
        )
        operator = Operator(
            store,
            FetcherPortal(self._fetcher),
            self._evictor,
            self._images,
            running,
            hits=self._hits,
            worker=worker,
            transport=transport,
        )
        tree = _tree(self._images, build(operator, serials, group_id(settings), shown or Shown()))
        self.operations = Operations(tree, serials, self.open_files, self._statfs)
        self._takeover = Takeover(
            self.open_files,
            self.image_files,
            store.quick,
            self._held,
            self._fetcher,
            expected=self._images.expected,
            keep_for_open=self._images.keep_for_open,
        )

    def connect(self, kernel: Invalidations) -> None:
        """Have *kernel* told of what the kernel should forget, from now on. Call it once, before
        :meth:`begin`."""
        self._kernel = kernel
        self._images.names.connect(
            lambda name, inode: kernel.invalidate_entry(IMAGES_INODE, name.encode(), inode)
        )
        self._store.before_choosing(self._hits.write_if_free)
        self._store.on_evicting(self.image_files.hold)
        self._store.on_stayed(self.image_files.stayed)
        self._store.on_evicted(self._evicted)
        self._fetcher.on_ended(self._flight_ended)
        self._running.on_change(self._settings_changed)

    async def begin(
        self, nursery: trio.Nursery, open_nodes: Mapping[int, int], *, first: bool
    ) -> None:
        """This worker's turn: start fetching and evicting in *nursery*, and take up what earlier
        workers left open; see :meth:`cachefs.vfs.takeover.Takeover.run`. No other worker serves the
        mount now, and no request is answered before this returns."""
        await trio.to_thread.run_sync(self._running.take_up)
        await self._takeover.run(open_nodes, first=first)  # before anything is evicted
        await nursery.start(self._fetcher.run)
        for task in (
            self._evictor.run,
            self.image_files.idle.close_old,
            self._images.expected.run,
            self._hits.run,
        ):
            nursery.start_soon(task)
        await self._takeover.go_on()
        log.info("serving %s at %s", self._fetcher.source.url, self._running.current.mountpoint)

    def end(self) -> None:
        """The mount is gone for good: close what is open, and hold nothing for another worker."""
        self._images.expected.close()
        self.open_files.close()
        self.image_files.idle.close()
        self._held.clear()

    # What others have to know

    def _settings_changed(self, settings: Settings) -> None:
        """In the changing thread, which evicts what is over the new limits."""
        self._store.limits = limits_of(settings)
        self._evictor.stall_time = settings.stall_time

    def _evicted(self, entry: Entry) -> None:
        """In the evicting thread: the name is gone for the kernel, too."""
        inode = join(NodeKind.CACHED, entry.inode)
        self._images.names.changed(entry.image_id, inode)

    def _flight_ended(self, flight: Flight) -> None:
        """The name of the image that was being fetched means another node now, or none."""
        self.image_files.flight_ended(flight)
        for inode in self._images.flight_ended(flight):
            self._kernel.invalidate_inode(inode)
        self._images.names.changed(flight.image.image_id)

    async def _statfs(self) -> StatFS:
        def measure() -> StatFS:
            usage = self._store.usage()
            return StatFS(usage.limit, usage.free, self._store.totals().images)

        return await trio.to_thread.run_sync(measure)


def limits_of(settings: Settings) -> Limits:
    """The limits that a cache keeps by *settings*."""
    return Limits(settings.max_size, settings.min_free)


def _tree(images: Images, built: tuple[FixedDirectory, list[Node], dict[int, Nodes]]) -> Tree:
    control, nodes, kinds = built
    root = FixedDirectory(ROOT_INODE)
    root.add("images", images)
    root.add("control", control)
    return Tree(
        {
            NodeKind.FIXED: fixed([root, images, *nodes]),
            NodeKind.CACHED: Nodes(
                images.cached_node,
                wait=images.cached_node_in_thread,
                refused=images.cached_refused,
            ),
            NodeKind.LAZY: Nodes(images.lazy_node, images.forget_lazy, refused=images.lazy_refused),
            **kinds,
        }
    )
