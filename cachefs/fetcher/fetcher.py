"""All fetches of a daemon: the queue is worked off, and every image has at most one flight.

Owns the nursery that flights run in. Nobody else starts a fetch, and no exception leaves
:meth:`run` but a cancellation."""

import logging
from collections.abc import Callable

import trio

from cachefs.cache import Store
from cachefs.errors import (
    CacheFSError,
    ChecksumError,
    ImageBusyError,
    ImageChangedError,
    ImageExistsError,
    ImageNotFoundError,
)
from cachefs.fetcher.answers import Answers, Health
from cachefs.fetcher.flight import Flight, FlightState, Progress, note_failure
from cachefs.fetcher.retry import is_passing, pauses
from cachefs.fetcher.traffic import Bandwidth, Precedence, Traffic
from cachefs.fetcher.transfer import FetchSettings
from cachefs.sources import Source, SourceImage, members

log = logging.getLogger(__name__)

POLL = 0.5
"""Seconds after which an ID queued by another process is noticed at the latest."""

_PATIENCE = 5.0  # seconds until a queue that cannot be read is tried again

_PUBLISHING = frozenset({FlightState.PUBLISHING, FlightState.PUBLISHED})


class Fetcher:
    """Fetches images from *source* into *store*; *bandwidth* and *prefetch_bandwidth* limit all
    fetches, and those that nobody reads. All methods are for the event loop of :meth:`run`; threads
    have :class:`~cachefs.fetcher.portal.FetcherPortal`."""

    def __init__(
        self,
        store: Store,
        source: Source,
        settings: FetchSettings,
        *,
        bandwidth: int | None = None,
        prefetch_bandwidth: int | None = None,
    ) -> None:
        self._store = store
        self.source = source
        self._settings = settings
        self._disk = trio.CapacityLimiter(16)
        self._traffic = Traffic(
            Bandwidth(bandwidth), Bandwidth(prefetch_bandwidth), Precedence(), self._disk
        )
        self._answers = Answers(source)
        self._listeners: list[Callable[[Flight], None]] = []
        self.flights: dict[str, Flight] = {}
        self._second_tries: dict[str, trio.CancelScope] = {}
        self._prefetching: set[str] = set()
        self._nursery: trio.Nursery | None = None
        self._woken = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take up what an earlier daemon left unfinished, and work off the queue, until cancelled;
        then every flight ends, and what it has got is kept for the next daemon."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await self._requeue_partial()
            await self._watch_queue()

    def on_ended(self, listener: Callable[[Flight], None]) -> None:
        """Call *listener*, in the event loop, whenever a flight has ended."""
        self._listeners.append(listener)

    def wake(self) -> None:
        """Look at the queue now."""
        self._woken.set()

    async def stat(self, image_id: str) -> SourceImage:
        """Ask the source for an image, once for all who ask at the same time; a no is believed for
        some seconds. Cancellation ends the waiting. Raises as :meth:`Source.stat`."""
        return await self._answers.ask(self._running, image_id)

    def start(self, image: SourceImage) -> Flight:
        """The flight of an image: the one under way, or a new one, which waits for the end of one
        that was cancelled."""
        earlier = self.flights.get(image.image_id)
        if earlier is not None and not earlier.cancelled:
            return earlier
        flight = Flight(self._store, self.source, image, self._settings, self._traffic)
        self.flights[image.image_id] = flight
        after = earlier.finished if earlier is not None else None
        self._running.start_soon(self._fly, flight, after)
        return flight

    def is_under_way(self, image_id: str) -> bool:
        """Whether the image is being fetched, or about to be once more."""
        return image_id in self.flights or image_id in self._second_tries

    def under_way(self) -> set[str]:
        """The images of which :meth:`is_under_way` is true."""
        return {*self.flights, *self._second_tries}

    def progress(self, image_id: str) -> Progress | None:
        """How far the fetch of an image is; None where it is not under way."""
        flight = self.flights.get(image_id)
        if flight is not None:
            return flight.progress()
        return Progress(FlightState.STARTING) if image_id in self._second_tries else None

    def image_wanted(self, image_id: str) -> None:
        """The image is about to be queued, so a negative answer from before does not count. Raises
        ImageExistsError where it is under way already. One that is being published may have been,
        and been evicted since: only the store can tell."""
        flight = self.flights.get(image_id)
        publishing = flight is not None and flight.state in _PUBLISHING
        if self.is_under_way(image_id) and not publishing:
            raise ImageExistsError(f"image {image_id!r} is being fetched already")
        self._answers.forget(image_id)

    def sources(self) -> list[tuple[str, Health]]:
        """The sources' URLs, and how they were when last asked."""
        return [(source.url, self._answers.health) for source in members(self.source)]

    async def cancel(self, image_id: str) -> None:
        """Stop the fetch of an image, throw away what has come, and forget that it was wanted;
        returns when that is done. Raises ImageNotFoundError where there is none."""
        flight, second_try = self.flights.get(image_id), self._second_tries.get(image_id)
        if flight is None and second_try is None:
            raise ImageNotFoundError(f"image {image_id!r} is not being fetched")
        self._store.quick.unqueue(image_id)
        if second_try is not None:
            second_try.cancel()
        if flight is not None:
            flight.cancel(CacheFSError(f"the fetch of {image_id!r} was cancelled"))
            await flight.finished.wait()

    # Inside

    @property
    def _running(self) -> trio.Nursery:
        assert self._nursery is not None, "Fetcher.run is not running"
        return self._nursery

    async def _fly(self, flight: Flight, after: trio.Event | None) -> None:
        """Run a flight to its end."""
        image_id = flight.image.image_id
        log.info("fetching %r (%d bytes) from %s", image_id, flight.image.size, flight.image.source)
        try:
            entry = await flight.run(after)
            self._try_once_more(flight)  # before it leaves: it is under way all the time
        finally:
            if self.flights.get(image_id) is flight:
                del self.flights[image_id]
        if entry is not None:
            log.info("cached %r: %d bytes, %s", image_id, entry.size, entry.checksum)
        elif isinstance(flight.error, ImageExistsError):  # another process was faster
            self._store.quick.unqueue(image_id)
        elif flight.error is not None:
            self._answers.note(flight.error)
        for listener in self._listeners:
            listener(flight)
        self._woken.set()

    def _try_once_more(self, flight: Flight) -> None:
        """Wrong bytes, or an image that changed on the way, are fetched afresh, but once."""
        image_id = flight.image.image_id
        if isinstance(flight.error, ChecksumError):
            self.source.forget_digest(image_id)
        if image_id in self._second_tries or self.flights.get(image_id) is not flight:
            return
        if isinstance(flight.error, ChecksumError | ImageChangedError):
            scope = self._second_tries[image_id] = trio.CancelScope()
            self._running.start_soon(self._fetch_once_more, image_id, scope)

    async def _fetch_once_more(self, image_id: str, scope: trio.CancelScope) -> None:
        """The second try, until it has ended either way."""
        try:
            with scope:
                await self._fetch(image_id)
        finally:
            del self._second_tries[image_id]
            self._woken.set()

    async def _requeue_partial(self) -> None:
        """Queue what is incomplete on disk and nobody's: its bytes are of use only when it is
        done."""
        await trio.to_thread.run_sync(self._store.requeue_abandoned, limiter=self._disk)

    async def _watch_queue(self) -> None:
        while True:
            self._woken = trio.Event()
            if len(self._prefetching) < self._settings.fetches:
                for image_id in await self._queued_ids():
                    if len(self._prefetching) >= self._settings.fetches:
                        break
                    if image_id not in self._prefetching and not self.is_under_way(image_id):
                        self._prefetching.add(image_id)
                        self._running.start_soon(self._prefetch, image_id)
            with trio.move_on_after(POLL):
                await self._woken.wait()

    async def _queued_ids(self) -> list[str]:
        """The queue; empty where it cannot be read just now, for lack of descriptors, say."""
        try:
            return await trio.to_thread.run_sync(self._store.queued_ids, limiter=self._disk)
        except OSError as error:
            log.error("cannot read the queue, trying again in %.0f s: %s", _PATIENCE, error)
            await trio.sleep(_PATIENCE)
            return []

    async def _prefetch(self, image_id: str) -> None:
        """Fetch one queued image; it leaves the queue with the end of its flight."""
        try:
            flight = await self._fetch(image_id, queued=True)
            if flight is not None and isinstance(flight.error, ImageBusyError):
                await trio.sleep(POLL)  # another process is at it: look again later
        finally:
            self._prefetching.discard(image_id)
            self._woken.set()

    async def _fetch(self, image_id: str, *, queued: bool = False) -> Flight | None:
        """Ask for an image, with retries, and fetch it to the end; its flight, or None."""
        try:
            image = await self._stat_with_retries(image_id)
        except CacheFSError as error:
            if not queued or self._store.quick.is_queued(image_id):
                await note_failure(self._store, image_id, error, self.source.url, self._disk)
            return None
        if queued and not self._store.quick.is_queued(image_id):  # taken out meanwhile
            return None
        flight = self.start(image)
        await flight.finished.wait()
        return flight

    async def _stat_with_retries(self, image_id: str) -> SourceImage:
        for pause in pauses(self._settings.tries):
            try:
                return await self.stat(image_id)
            except CacheFSError as error:
                if not is_passing(error):
                    raise
                log.info("asking for %r again in %.1f s: %s", image_id, pause, error)
            await trio.sleep(pause)
        return await self.stat(image_id)
