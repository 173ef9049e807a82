"""The queue is worked off: which image is fetched next, and which wait meanwhile.

An image that cannot be had now takes no place among those that are fetched: it waits in the queue
(:mod:`cachefs.fetcher.waits`), and the others go on. Owns the waits and who is under way for the
queue; how an image is fetched is the fetcher's."""

import logging
from collections.abc import Awaitable, Callable

import trio

from cachefs.cache import Store
from cachefs.errors import CacheFSError
from cachefs.fetcher.waits import Waiting, Waits, WaitsFor
from cachefs.sources import ChainSource

log = logging.getLogger(__name__)

POLL = 0.5
"""Seconds after which an ID queued by another process is noticed at the latest."""

PATIENCE = 5.0
"""Seconds until a queue that cannot be read or written is tried again."""

_MOST_ASKED_FOR = 10_000


class Prefetcher:
    """Works off *store*'s queue, *most* images at a time. *fetch* fetches one to its end, and tells
    :meth:`failed` of what went wrong; *is_under_way* tells whether a fetch of an image runs. For
    one event loop."""

    def __init__(
        self,
        store: Store,
        chain: ChainSource,
        most: int,
        disk: trio.CapacityLimiter,
        *,
        fetch: Callable[[str], Awaitable[None]],
        is_under_way: Callable[[str], bool],
    ) -> None:
        self._store = store
        self._chain = chain
        self._most = most
        self._disk = disk
        self._fetch = fetch
        self._is_under_way = is_under_way
        self._fetching: set[str] = set()
        self._asked_for: set[str] = set()
        self._waits = Waits(trio.current_time)
        self._woken = trio.Event()

    async def run(self) -> None:
        """Work off the queue until cancelled; fetches under way end with it."""
        async with trio.open_nursery() as nursery:
            while True:
                self._woken = trio.Event()
                if len(self._fetching) < self._most:
                    try:
                        await self._start_some(nursery)
                    except (CacheFSError, OSError) as error:  # for lack of descriptors, say
                        log.error(
                            "cannot read the queue, trying again in %.0f s: %s", PATIENCE, error
                        )
                        await trio.sleep(PATIENCE)
                with trio.move_on_after(POLL):
                    await self._woken.wait()

    def wake(self) -> None:
        """Look at the queue now."""
        self._woken.set()

    def wanted(self, image_id: str) -> None:
        """The image has been asked for anew, or is cached: it waits no longer."""
        self._waits.forget(image_id)

    def asked_for(self, image_id: str) -> None:
        """A user has just asked for the image: it waits no longer, and is tried though its source
        is left alone, unless the source has asked for that."""
        if len(self._asked_for) >= _MOST_ASKED_FOR:
            self._asked_for.clear()
        self._asked_for.add(image_id)
        self._waits.forget(image_id)

    def source_is_back(self) -> None:
        """A source has come back: what waits for one is tried now."""
        self._waits.wake(WaitsFor.SOURCE)
        self.wake()

    def room_changed(self) -> None:
        """There may be room: what waits for it is tried now. Called at every close of an image, so
        the queue is not even looked at where nothing waits."""
        if self._waits.wake(WaitsFor.ROOM):
            self.wake()

    def waiting(self, image_id: str) -> Waiting | None:
        """What a queued image waits for; None where it is about to be tried. Those that have not
        been tried wait for their source, too, while it is left alone."""
        waiting = self._waits.get(image_id)
        rest = self._chain.rest()
        if waiting is None and rest > 0 and image_id not in self._fetching:
            return Waiting(WaitsFor.SOURCE, self._why_resting(), rest)
        return waiting

    def failed(self, image_id: str, error: Exception, size: int | None = None) -> None:
        """The fetch of an image has failed of *error*: if it is queued still, it waits. *size* is
        in bytes, where it is known."""
        if not self._store.quick.is_queued(image_id):
            return
        known = self._waits.reason(image_id)
        pause = self._waits.put(image_id, error, size)
        level = logging.DEBUG if known == str(error) else logging.INFO
        log.log(
            level,
            "%r waits in the queue, asking for it again in %.1f s: %s",
            image_id,
            pause,
            error,
        )

    async def _start_some(self, nursery: trio.Nursery) -> None:
        ids = await trio.to_thread.run_sync(self._store.queued_ids, limiter=self._disk)
        self._waits.keep_only(ids)
        resting = self._chain.rest() > 0
        ready = [
            image_id
            for image_id in ids
            if self._may_start(image_id) and (not resting or image_id in self._asked_for)
        ]
        sizes = {image_id: self._waits.wanted_room(image_id) for image_id in ready}
        wanted = {image_id: size for image_id, size in sizes.items() if size is not None}
        if wanted:
            fitting = await trio.to_thread.run_sync(self._store.fitting, wanted, limiter=self._disk)
            for image_id in wanted.keys() - fitting:
                self._waits.again(image_id)
        for image_id in ready:
            if len(self._fetching) >= self._most:
                break
            if self._may_start(image_id):  # looked at again: a thread was waited for
                self._fetching.add(image_id)
                self._asked_for.discard(image_id)
                nursery.start_soon(self._prefetch, image_id)

    def _may_start(self, image_id: str) -> bool:
        return (
            image_id not in self._fetching
            and not self._is_under_way(image_id)
            and self._waits.is_due(image_id)
        )

    async def _prefetch(self, image_id: str) -> None:
        try:
            await self._fetch(image_id)
        finally:
            self._fetching.discard(image_id)
            self._woken.set()

    def _why_resting(self) -> str:
        return self._chain.members[0].breaker.health.error or "the source is left alone"
