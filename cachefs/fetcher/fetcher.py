"""All fetches of a daemon: the queue is worked off, and every image has at most one flight.

Owns the nursery that flights run in. Nobody else starts a fetch, and no exception leaves
:meth:`run` but a cancellation. What is fetched next of the queue, and what waits there, is
:mod:`cachefs.fetcher.prefetch`'s."""

import contextlib
import logging
from collections.abc import Callable
from functools import partial

import trio

from cachefs.cache import Store
from cachefs.errors import (
    CacheFSError,
    ChecksumError,
    ImageBusyError,
    ImageChangedError,
    ImageExistsError,
    ImageNotFoundError,
    NoRoomError,
)
from cachefs.fetcher.answers import Answers
from cachefs.fetcher.flight import Flight, FlightState, Progress, note_failure
from cachefs.fetcher.prefetch import PATIENCE, Prefetcher
from cachefs.fetcher.probes import Probes
from cachefs.fetcher.rejected import Rejected, version_name
from cachefs.fetcher.retry import is_final
from cachefs.fetcher.room import Room
from cachefs.fetcher.traffic import Bandwidth, Precedence, Traffic
from cachefs.fetcher.transfer import FetchSettings
from cachefs.fetcher.waits import Waiting
from cachefs.sources import Health, Source, SourceImage, chain_of
from cachefs.throttle import Throttle

log = logging.getLogger(__name__)

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
        self.source = chain_of(source)
        self._settings = settings
        self._disk = trio.CapacityLimiter(16)
        self._room = Room()
        self._traffic = Traffic(
            Bandwidth(bandwidth),
            Bandwidth(prefetch_bandwidth),
            Precedence(),
            self._disk,
            self._room,
        )
        self._answers = Answers(self.source)
        self._probes = Probes(self.source)
        self._prefetcher = Prefetcher(
            store,
            self.source,
            settings.fetches,
            self._disk,
            fetch=self._fetch_queued,
            is_under_way=self.is_under_way,
        )
        self._rejected = Rejected()
        self._throttle = Throttle()
        self._listeners: list[Callable[[Flight], None]] = []
        self.flights: dict[str, Flight] = {}
        self._second_tries: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take up what an earlier daemon left unfinished, and work off the queue, until cancelled;
        then every flight ends, and what it has got is kept for the next daemon."""
        token = trio.lowlevel.current_trio_token()

        def sources_changed() -> None:
            with contextlib.suppress(trio.RunFinishedError):  # of a thread that was left behind
                token.run_sync_soon(self._sources_changed)

        def room_changed() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self.room_changed, idempotent=True)

        self.source.on_change(sources_changed)
        self._store.on_room(room_changed)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._remember_rejected()  # before any reader comes
            task_status.started()
            nursery.start_soon(self._requeue_partial)
            nursery.start_soon(self._probes.run)
            await self._prefetcher.run()

    def on_ended(self, listener: Callable[[Flight], None]) -> None:
        """Call *listener*, in the event loop, whenever a flight has ended."""
        self._listeners.append(listener)

    def wake(self) -> None:
        """Look at the queue now."""
        self._prefetcher.wake()

    def room_changed(self) -> None:
        """There may be room in the cache: those that wait for it are told."""
        self._room.changed()
        self._prefetcher.room_changed()

    async def stat(self, image_id: str) -> SourceImage:
        """Ask the source for an image, once for all who ask at the same time; a no is believed for
        some seconds. Cancellation ends the waiting. Raises as :meth:`Source.stat`."""
        return await self._answers.ask(self._running, image_id)

    def start(self, image: SourceImage) -> Flight:
        """The flight of an image: the one under way, or a new one, which waits for the end of one
        that was cancelled. Raises ChecksumError where this version has been found wrong twice, and
        the image has not been queued since."""
        earlier = self.flights.get(image.image_id)
        if earlier is not None and not earlier.cancelled:
            return earlier
        self._rejected.check(image)
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
        """The image is about to be queued, so nothing counts that was answered or found wrong
        before, and it waits no longer. Raises
        ImageExistsError where it is under way already. One that is being published may have been,
        and been evicted since: only the store can tell."""
        flight = self.flights.get(image_id)
        publishing = flight is not None and flight.state in _PUBLISHING
        if self.is_under_way(image_id) and not publishing:
            raise ImageExistsError(f"image {image_id!r} is being fetched already")
        self._answers.forget(image_id)
        self._rejected.forget(image_id)
        self._prefetcher.asked_for(image_id)

    def forget_rejected(self, image_id: str | None = None) -> None:
        """The failure of an image, or of all, is forgotten: readers may have its bytes fetched."""
        if image_id is None:
            self._rejected.clear()
        else:
            self._rejected.forget(image_id)

    def waiting(self, image_id: str) -> Waiting | None:
        """What an image waits for in the queue; None where it does not."""
        return self._prefetcher.waiting(image_id)

    def sources(self) -> list[tuple[str, Health]]:
        """The sources' URLs, and how they were when last asked."""
        return [(member.url, member.breaker.health) for member in self.source.members]

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
            flight.is_unwanted = True
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
            again = self._try_once_more(flight)  # before it leaves: it is under way all the time
        finally:
            if self.flights.get(image_id) is flight:
                del self.flights[image_id]
        if entry is not None:
            log.info("cached %r: %d bytes, %s", image_id, entry.size, entry.checksum)
            self._prefetcher.wanted(image_id)
        elif isinstance(flight.error, ImageExistsError):  # another process was faster
            self._unqueue(image_id)
        elif flight.error is not None and not flight.cancelled:
            await self._flight_failed(flight, flight.error, again=again)
        for listener in self._listeners:
            listener(flight)
        if not isinstance(flight.error, NoRoomError):  # then there is no more than before
            self.room_changed()
        self.wake()

    async def _flight_failed(self, flight: Flight, error: CacheFSError, *, again: bool) -> None:
        """What becomes of an image whose fetch has failed; *again* where it is tried once more."""
        image_id = flight.image.image_id
        if not is_final(error) and not self._store.quick.is_queued(image_id):
            here = isinstance(error, NoRoomError | ImageBusyError)  # its readers' open says so
            level = logging.INFO if here else logging.WARNING
            more = self._throttle.more((type(error), image_id if here else flight.image.source))
            if more is not None:
                source = flight.image.source
                log.log(level, "could not fetch %r from %s: %s%s", image_id, source, error, more)
            if not again and not here:
                await self._queue_for_later(image_id)
        if not again:
            self._prefetcher.failed(image_id, error, flight.image.size)

    async def _queue_for_later(self, image_id: str) -> None:
        """A fetch that readers began goes on without them, where it is to: so what passes for the
        queue passes for it, too."""

        def enqueue() -> None:
            with contextlib.suppress(ImageExistsError):  # cached by another process
                self._store.enqueue(image_id)

        if self._settings.keep:
            await self._write_down(f"queue {image_id!r}", enqueue)

    async def _write_down(self, what: str, write: Callable[[], object]) -> bool:
        """*write*, in a thread; False where it went wrong, which is logged as a failure to do
        *what*."""
        try:
            await trio.to_thread.run_sync(write, limiter=self._disk)
        except (CacheFSError, OSError) as error:  # a full disk, say
            log.error("cannot %s: %s", what, error)
            return False
        return True

    def _unqueue(self, image_id: str) -> None:
        try:
            self._store.quick.unqueue(image_id)
        except OSError as error:
            log.error("cannot take %r out of the queue: %s", image_id, error)

    def _try_once_more(self, flight: Flight) -> bool:
        """Wrong bytes, or an image that changed on the way, are fetched afresh, but once; whether
        they will be."""
        image_id = flight.image.image_id
        is_wrong, is_last = isinstance(flight.error, ChecksumError), image_id in self._second_tries
        is_replaced = self.flights.get(image_id) is not flight
        if is_wrong:
            self.source.forget_digest(image_id)
        if is_last or is_replaced:
            if is_wrong:
                self._rejected.add(image_id, version_name(flight.image), str(flight.error))
                if not is_replaced:
                    self._unqueue(image_id)
            return False
        if flight.is_unwanted or not (is_wrong or isinstance(flight.error, ImageChangedError)):
            return False
        scope = self._second_tries[image_id] = trio.CancelScope()
        self._running.start_soon(self._fetch_once_more, image_id, scope)
        return True

    async def _fetch_once_more(self, image_id: str, scope: trio.CancelScope) -> None:
        """The second try, until it has ended either way. What is queued still waits for another;
        that it was wrong once is no matter then."""
        try:
            with scope:
                await self._fetch(image_id)
                if self._store.quick.is_queued(image_id):
                    forget = partial(self._store.forget_failure, image_id)
                    await self._write_down(f"forget that {image_id!r} was wrong", forget)
        finally:
            del self._second_tries[image_id]
            self.wake()

    async def _remember_rejected(self) -> None:
        """What earlier daemons found wrong is wrong still."""

        def look() -> list[tuple[str, str, str]]:
            failures = map(self._store.failure, self._store.failed_ids())
            return [(f.image_id, f.version, f.error) for f in failures if f and f.version]

        try:
            for rejected in await trio.to_thread.run_sync(look, limiter=self._disk):
                self._rejected.add(*rejected)
        except (CacheFSError, OSError) as error:
            log.error("cannot tell which images were found wrong before: %s", error)

    async def _requeue_partial(self) -> None:
        """Queue what is incomplete on disk and nobody's: its bytes are of use only when it is
        done. Where that cannot be written down it is tried again."""
        what = "queue what is incomplete, trying again"
        done = await self._write_down(what, self._store.requeue_abandoned)
        while not done:
            await trio.sleep(PATIENCE)
            done = await self._write_down(what, self._store.requeue_abandoned)
        self.wake()

    async def _fetch_queued(self, image_id: str) -> None:
        """Fetch one queued image to the end of its flight; if it is queued still, it waits."""
        self._answers.forget(image_id)  # each try is a question
        self._rejected.forget(image_id)  # it was queued, perhaps by another process
        await self._fetch(image_id, queued=True)

    async def _fetch(self, image_id: str, *, queued: bool = False) -> None:
        """Ask for an image, and fetch it to the end."""
        try:
            image = await self.stat(image_id)
            if queued and not self._store.quick.is_queued(image_id):  # taken out meanwhile
                return
            flight = self.start(image)
        except CacheFSError as error:
            if is_final(error) and (not queued or self._store.quick.is_queued(image_id)):
                if await note_failure(self._store, image_id, error, self.source.url, self._disk):
                    return  # if it is queued by now, it was asked for since
            elif not is_final(error) and not queued:
                await self._queue_for_later(image_id)
            self._prefetcher.failed(image_id, error)
            return
        except OSError as error:  # for lack of descriptors, say
            if not queued:
                await self._queue_for_later(image_id)
            self._prefetcher.failed(image_id, error)
            return
        await flight.finished.wait()

    def _sources_changed(self) -> None:
        """A source has begun to be left alone, or is back."""
        self._probes.changed()
        if self.source.rest() == 0:
            self._prefetcher.source_is_back()
