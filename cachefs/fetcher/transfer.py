"""Moving one image's bytes from the source into its file: spans, workers, retries, limits.

The event loop owns the map and decides; threads only move bytes, mark them in the durable map, and
report. A thread that a cancellation has left behind ends with its next piece, which it cannot write
any more (:mod:`cachefs.fetcher.sink`)."""

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import trio

from cachefs.cache import PartialMap
from cachefs.errors import CacheFSError, ImageChangedError, SourceError, without_traceback
from cachefs.fetcher.chunks import ChunkMap, Span
from cachefs.fetcher.concurrency import Reports, gather
from cachefs.fetcher.retry import RetryPolicy
from cachefs.fetcher.sink import Sink
from cachefs.fetcher.traffic import Traffic
from cachefs.sources import Source, SourceImage

log = logging.getLogger(__name__)

SYNC_EVERY = 5.0
"""Seconds between syncs of what has arrived: what a power loss costs, at most."""

SPAN_TIME = 0.25
"""Seconds that a request of the background fill should take: a reader may come to wait for the last
chunk of it. Less where that is less than a chunk."""


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How to fetch. *fetches* is of queued images at once; *connections* of requests for one image
    that fill it, *urgent* of further ones for what readers wait for; at most *span* bytes are asked
    for in one request, *urgent_span* where a reader waits; *tries* come after a passing failure
    without progress between. Without *keep* the last reader's close ends a fetch that nobody
    queued. A reader waits for room in the cache for *room_timeout* seconds."""

    fetches: int = 3
    connections: int = 4
    urgent: int = 2
    span: int = 16 * 2**20
    urgent_span: int = 4 * 2**20
    tries: int = 5
    keep: bool = True
    room_timeout: float = 30.0


class Transfer:
    """Brings the chunks that are missing from *present*. *changed* is unparked whenever more has
    arrived or is wanted; *is_read* tells whether the image has a reader, so that it need not wait
    its turn.

    *ranges* tells whether parts are asked for. They are not where nothing would tell the parts of
    two versions from each other, neither a digest nor the source's own name for the version."""

    def __init__(
        self,
        source: Source,
        image: SourceImage,
        settings: FetchSettings,
        traffic: Traffic,
        is_read: Callable[[], bool],
    ) -> None:
        self._source = source
        self._image = image
        self._settings = settings
        self._traffic = traffic
        self._is_read = is_read
        self._stopped = threading.Event()
        self.ranges = image.ranges and (image.version is not None or image.digest is not None)
        self._fillers = settings.connections if self.ranges else 1
        self._urgent = settings.urgent if self.ranges else 0
        self._downloads = trio.CapacityLimiter(self._fillers + self._urgent)
        self.map = ChunkMap(image.size)
        self.changed = trio.lowlevel.ParkingLot()
        self.idle = trio.lowlevel.ParkingLot()  # workers; readers, who may be many, are not woken

    async def run(self, fd: int, partial: PartialMap) -> None:
        """Get every chunk that *partial* lacks, into the file *fd*. Raises the error that stopped
        it, alone. However it ends, nothing is written after it; what has arrived stays marked."""
        self._sink = Sink(fd, partial)
        self._reports = Reports(self._arrived)
        self.map = ChunkMap(self._image.size, present=partial.present())
        self.changed.unpark_all()
        self.idle.unpark_all()
        try:
            await gather(
                lambda: self._reports.listen(lambda: self.map.complete, self._is_read),
                lambda: self._sync(fd, partial),
                *[self._fill] * self._fillers,
                *[self._fetch_demanded] * self._urgent,
            )
        finally:
            self._stopped.set()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._sink.shut, limiter=self._traffic.disk)

    async def _fill(self) -> None:
        """Get span after span until none is missing."""
        settings = self._settings
        retry = RetryPolicy(settings.tries)
        most = min(settings.span, settings.urgent_span)
        if not self.ranges:
            most = self._image.size + self.map.chunk
        while not self.map.complete:
            await self._traffic.precedence.turn(lambda: self._is_read() or self.map.complete)
            span = self.map.claim_demanded(most) or self.map.claim_next(most)
            began = trio.current_time()
            await self._get_or_wait(span, retry)
            if span is not None and self.ranges:
                rate = len(span) / max(trio.current_time() - began, 1e-3)
                most = min(int(rate * SPAN_TIME), settings.span)

    async def _fetch_demanded(self) -> None:
        """Get what readers wait for, until none is missing."""
        retry = RetryPolicy(self._settings.tries)
        while not self.map.complete:
            span = self.map.claim_demanded(self._settings.urgent_span)
            await self._get_or_wait(span, retry)

    async def _get_or_wait(self, span: Span | None, retry: RetryPolicy) -> None:
        if span is None:
            if not self.map.complete:
                await self.idle.park()
            return
        try:
            await self._get(span)
            return
        except (CacheFSError, OSError) as error:
            pause = retry.pause(error, self.map.arrived_bytes)
            if pause is None:
                raise
            log.info("fetching %r again in %.1f s: %s", self._image.image_id, pause, error)
        finally:
            self._reports.take_in()
            self.map.release(span)  # once: from here on it may be another worker's
            self.changed.unpark_all()
            self.idle.unpark_all()
        with trio.move_on_after(pause):
            await self._all_here()

    async def _get(self, span: Span) -> None:
        start, known = (span.start, span.start) if self.ranges else (0, self.map.prefix)
        failure = await trio.to_thread.run_sync(
            self._try_download,
            start,
            known,
            span.stop,
            limiter=self._downloads,
            abandon_on_cancel=True,
        )
        if failure is not None:
            raise failure

    def _try_download(self, start: int, known: int, stop: int) -> Exception | None:
        """:meth:`_download`, its error returned without its frames. Raised, trio would have it in a
        cycle, and an answer that nobody has read to its end would keep its connection until the
        next collection."""
        try:
            self._download(start, known, stop)
        except (CacheFSError, OSError) as error:
            return without_traceback(error)
        return None

    def _download(self, start: int, known: int, stop: int) -> None:
        """In a thread: write the bytes [*start*, *stop*) as they come, and report whole chunks.
        Those before *known* are there; they must be the same."""
        position, reported = start, known
        with contextlib.closing(self._source.read(self._image, start, stop)) as pieces:
            for piece in pieces:
                if self._stopped.is_set():
                    return
                old = min(max(0, known - position), len(piece))
                if old and not self._sink.agrees(piece[:old], position):
                    raise ImageChangedError(
                        f"{self._image.image_id!r} at {self._image.source}: the source does not"
                        " send the same bytes again"
                    )
                new, offset = memoryview(piece)[old:], position + old
                # It takes time from a reader, and saves it to those that wait for the end.
                if not self._sink.write(new, offset, to_disk=not self._is_read()):
                    return
                position += len(piece)
                reported = self._report(reported, position, stop)
                pause = self._pause(len(piece))
                if pause > 0:
                    self._stopped.wait(pause)
        if position != stop:
            raise SourceError(f"the source sent {position - start} of {stop - start} bytes")

    def _report(self, reported: int, position: int, stop: int) -> int:
        """Mark the chunks that have become whole, and tell the event loop; how far that is."""
        chunk = self.map.chunk
        whole = position if position == stop else position - position % chunk
        if whole <= reported or not self._sink.mark(reported // chunk, -(-whole // chunk)):
            return reported
        self._reports.post(reported, whole)
        return whole

    def _pause(self, count: int) -> float:
        traffic = self._traffic
        pause = traffic.everything.take(count)
        return pause if self._is_read() else max(pause, traffic.prefetch.take(count))

    def _arrived(self, start: int, stop: int) -> None:
        self.map.arrived(start, stop)
        self.changed.unpark_all()
        self.idle.unpark_all()
        if self.map.complete:
            self._reports.wake()
            self._traffic.precedence.look_again()

    async def _all_here(self) -> None:
        while not self.map.complete:
            await self.changed.park()

    async def _sync(self, fd: int, partial: PartialMap) -> None:
        """Make what has arrived durable from time to time."""
        while not self.map.complete:
            with trio.move_on_after(SYNC_EVERY):
                await self._all_here()
            if not self.map.complete:
                await trio.to_thread.run_sync(partial.sync, fd, limiter=self._traffic.disk)
