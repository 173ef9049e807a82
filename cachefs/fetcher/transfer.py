"""Moving one image's bytes from the source into its file: spans, workers, retries, limits.

The event loop owns the map and decides; threads only move bytes, mark them in the durable map, and
report. A thread that was abandoned by a cancellation ends with its next piece, and can do no harm
until then: it writes bytes of this version to a file of this version, or to one that has no name
any more."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

import trio

from cachefs.cache import PartialMap
from cachefs.errors import CacheFSError, SourceError
from cachefs.fetcher.bandwidth import Bandwidth
from cachefs.fetcher.chunks import ChunkMap, Span
from cachefs.fetcher.precedence import Precedence
from cachefs.fetcher.retry import is_passing, pauses
from cachefs.fetcher.together import together
from cachefs.sources import Source, SourceImage

log = logging.getLogger(__name__)

SYNC_EVERY = 5.0
"""Seconds between syncs of what has arrived: what a power loss costs, at most."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to fetch. *fetches* is of queued images at once; *connections* of requests for one image
    that fill it, *urgent* of further ones for what readers wait for; *span* bytes are asked for in
    one request, *urgent_span* where somebody waits; *tries* come after a passing failure without
    progress between. Without *keep* the last reader's close ends a fetch that nobody queued."""

    fetches: int = 3
    connections: int = 4
    urgent: int = 2
    span: int = 16 * 2**20
    urgent_span: int = 4 * 2**20
    tries: int = 5
    keep: bool = True


@dataclass(frozen=True, slots=True)
class Traffic:
    """What all fetches of a daemon share: limits for all and for queued ones alone, and who goes
    first."""

    everything: Bandwidth
    prefetch: Bandwidth
    precedence: Precedence


class Transfer:
    """Brings the chunks that are missing from *present*. *changed* is unparked whenever more has
    arrived or is wanted; *is_read* tells whether somebody reads the image, so that it need not wait
    its turn."""

    def __init__(
        self,
        source: Source,
        image: SourceImage,
        settings: Settings,
        traffic: Traffic,
        is_read: Callable[[], bool],
    ) -> None:
        self._source = source
        self._image = image
        self._settings = settings
        self._traffic = traffic
        self._is_read = is_read
        self._stopped = threading.Event()
        self._tries = pauses(settings.tries)
        self._partial: PartialMap | None = None
        self._fd = -1
        self.map = ChunkMap(image.size)
        self.changed = trio.lowlevel.ParkingLot()

    async def run(self, fd: int, partial: PartialMap) -> None:
        """Get every chunk that *partial* lacks, into the file *fd*. Raises the error that stopped
        it, alone. Cancelled, it leaves at once; what has arrived stays marked."""
        self._fd, self._partial = fd, partial
        self._token = trio.lowlevel.current_trio_token()
        self.map = ChunkMap(self._image.size, present=partial.present())
        self.changed.unpark_all()
        fillers, urgent = self._settings.connections, self._settings.urgent
        if not self._image.ranges:
            fillers, urgent = 1, 0
        try:
            await together(self._sync, *[self._fill] * fillers, *[self._hurry] * urgent)
        finally:
            self._stopped.set()

    async def _fill(self) -> None:
        """Get span after span until none is missing."""
        while not self.map.complete:
            await self._traffic.precedence.turn(self._is_read)
            most = self._settings.span if self._image.ranges else self._image.size
            span = self.map.claim_demanded(most) or self.map.claim_next(most)
            await self._get_or_wait(span)

    async def _hurry(self) -> None:
        """Get what readers wait for, until none is missing."""
        while not self.map.complete:
            await self._get_or_wait(self.map.claim_demanded(self._settings.urgent_span))

    async def _get_or_wait(self, span: Span | None) -> None:
        if span is None:
            if not self.map.complete:
                await self.changed.park()
            return
        try:
            await self._get(span)
        except CacheFSError as error:
            pause = next(self._tries, None) if is_passing(error) else None
            if pause is None:
                raise
            log.info("fetching %r again in %.1f s: %s", self._image.image_id, pause, error)
            self.map.release(span)
            await trio.sleep(pause)
        finally:
            self.map.release(span)
            self.changed.unpark_all()

    async def _get(self, span: Span) -> None:
        start = span.start if self._image.ranges else 0
        # A description of the file of its own: the thread may outlive the owner of the file's lock.
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_CLOEXEC)
        await trio.to_thread.run_sync(self._download, fd, start, span.stop, abandon_on_cancel=True)

    def _download(self, fd: int, start: int, stop: int) -> None:
        """In a thread: write the bytes [*start*, *stop*) as they come, and report whole chunks."""
        try:
            position = reported = start
            with contextlib.closing(self._source.read(self._image, start, stop)) as pieces:
                for piece in pieces:
                    if self._stopped.is_set():
                        return
                    position += _write_at(fd, piece, position)
                    reported = self._report(reported, position, stop)
                    self._stopped.wait(self._pause(len(piece)))
            if position != stop:
                raise SourceError(f"the source sent {position - start} of {stop - start} bytes")
        finally:
            os.close(fd)

    def _report(self, reported: int, position: int, stop: int) -> int:
        chunk = self.map.chunk
        whole = position if position == stop else position - position % chunk
        if whole > reported:
            assert self._partial is not None
            self._partial.mark_written(reported // chunk, -(-whole // chunk))
            self._token.run_sync_soon(self._arrived, reported, whole)
        return whole

    def _pause(self, count: int) -> float:
        traffic = self._traffic
        pause = traffic.everything.take(count)
        return pause if self._is_read() else max(pause, traffic.prefetch.take(count))

    def _arrived(self, start: int, stop: int) -> None:
        self.map.arrived(start, stop)
        self._tries = pauses(self._settings.tries)
        self.changed.unpark_all()

    async def _sync(self) -> None:
        """Make what has arrived durable from time to time; errors are left to the commit's sync."""
        assert self._partial is not None
        while not self.map.complete:
            with trio.move_on_after(SYNC_EVERY):
                while not self.map.complete:
                    await self.changed.park()
            if not self.map.complete:
                with contextlib.suppress(OSError):
                    await trio.to_thread.run_sync(self._partial.sync, self._fd)


def _write_at(fd: int, data: bytes, offset: int) -> int:
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)
    return done
