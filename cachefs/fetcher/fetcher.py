"""All fetches of a daemon: the queue is worked off, and every image has at most one flight.

Owns the nursery that flights run in. Nobody else starts a fetch, and no exception leaves
:meth:`run` but a cancellation."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from cachefs.cache import Store
from cachefs.errors import (
    CacheFSError,
    ImageBusyError,
    ImageExistsError,
    ImageNotFoundError,
)
from cachefs.fetcher.flight import Flight, Settings, note_failure
from cachefs.fetcher.retry import is_passing, pauses
from cachefs.sources import Source, SourceImage

log = logging.getLogger(__name__)

POLL = 0.5
"""Seconds after which an ID queued by another process is noticed at the latest."""

MAX_STATS = 16
"""Questions to the source under way at once, each in a thread."""


@dataclass(slots=True)
class _Question:
    """A question to the source that several may wait for."""

    answered: trio.Event
    answer: SourceImage | None = None
    error: CacheFSError | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the source answered last time, and if not, why."""

    healthy: bool = True
    error: str | None = None


class Fetcher:
    """Fetches images from *source* into *store*. All methods are for the event loop of :meth:`run`,
    except :meth:`wake`, which any thread may call."""

    def __init__(
        self,
        store: Store,
        source: Source,
        settings: Settings,
    ) -> None:
        self._store = store
        self.source = source
        self._settings = settings
        self._listeners: list[Callable[[Flight], None]] = []
        self.flights: dict[str, Flight] = {}
        self.health = Health()
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._woken = trio.Event()
        self._prefetching: set[str] = set()
        self._questions: dict[str, _Question] = {}
        self._stats = trio.CapacityLimiter(MAX_STATS)
        self._disk = trio.CapacityLimiter(4)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work off the queue until cancelled; then every flight ends and its bytes are thrown
        away."""
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await self._watch_queue(nursery)

    def on_ended(self, listener: Callable[[Flight], None]) -> None:
        """Call *listener*, in the event loop, whenever a flight has ended."""
        self._listeners.append(listener)

    def wake(self) -> None:
        """Look at the queue now; for any thread."""
        token = self._token
        if token is None:
            return
        token.run_sync_soon(self._wake_up, idempotent=True)

    async def stat(self, image_id: str) -> SourceImage:
        """Ask the source for an image, once for all who ask at the same time.

        Cancellation ends the waiting, not the question. Raises as :meth:`Source.stat`.
        """
        question = self._questions.get(image_id)
        if question is None:
            question = self._questions[image_id] = _Question(trio.Event())
            self._running.start_soon(self._ask, image_id, question)
        await question.answered.wait()
        if question.error is not None:
            raise type(question.error)(*question.error.args) from question.error
        assert question.answer is not None
        return question.answer

    def start(self, image: SourceImage) -> Flight:
        """The flight of an image: the one under way, or a new one."""
        flight = self.flights.get(image.image_id)
        if flight is None:
            flight = Flight(self._store, self.source, image, self._settings)
            self.flights[image.image_id] = flight
            self._running.start_soon(self._fly, flight)
        return flight

    def sources(self) -> list[tuple[str, Health]]:
        """The sources' URLs, and how they were when last asked."""
        return [(self.source.url, self.health)]

    def cancel(self, image_id: str) -> None:
        """Stop the fetch of an image and forget that it was wanted. Raises ImageNotFoundError where
        there is none."""
        flight = self.flights.get(image_id)
        if flight is None:
            raise ImageNotFoundError(f"image {image_id!r} is not being fetched")
        self._store.queue.discard(image_id)
        flight.cancel(CacheFSError(f"the fetch of {image_id!r} was cancelled"))

    # Inside

    def _wake_up(self) -> None:
        self._woken.set()

    @property
    def _running(self) -> trio.Nursery:
        assert self._nursery is not None, "Fetcher.run is not running"
        return self._nursery

    async def _fly(self, flight: Flight) -> None:
        """Run a flight to its end."""
        image_id = flight.image.image_id
        log.info("fetching %r (%d bytes) from %s", image_id, flight.image.size, flight.image.source)
        try:
            entry = await flight.run()
        finally:
            del self.flights[image_id]
        if entry is not None:
            log.info("cached %r: %d bytes, %s", image_id, entry.size, entry.checksum)
        elif isinstance(flight.error, ImageExistsError):  # another process was faster
            self._store.queue.discard(image_id)
        for listener in self._listeners:
            listener(flight)
        self._woken.set()

    async def _ask(self, image_id: str, question: _Question) -> None:
        try:
            question.answer = await trio.to_thread.run_sync(
                self.source.stat, image_id, limiter=self._stats, abandon_on_cancel=True
            )
            self.health = Health()
        except CacheFSError as error:
            question.error = error
            self.health = Health(False, str(error)) if is_passing(error) else Health()
        finally:
            if question.answer is None and question.error is None:
                question.error = CacheFSError("the daemon is ending")
            del self._questions[image_id]
            question.answered.set()

    async def _watch_queue(self, nursery: trio.Nursery) -> None:
        seen = -1
        while True:
            self._woken = trio.Event()
            changed = await trio.to_thread.run_sync(self._store.queue.changed, limiter=self._disk)
            if changed != seen or len(self._prefetching) < self._settings.fetches:
                waiting = await trio.to_thread.run_sync(self._store.queue.ids, limiter=self._disk)
                for image_id in waiting:
                    if len(self._prefetching) >= self._settings.fetches:
                        break
                    if image_id not in self._prefetching and image_id not in self.flights:
                        self._prefetching.add(image_id)
                        nursery.start_soon(self._prefetch, image_id)
                seen = changed
            with trio.move_on_after(POLL):
                await self._woken.wait()

    async def _prefetch(self, image_id: str) -> None:
        """Fetch one queued image; it leaves the queue with the end of its flight."""
        try:
            image = await self._stat_patiently(image_id)
            if image_id not in self._store.queue:  # taken out meanwhile
                return
            flight = self.start(image)
            await flight.finished.wait()
            if isinstance(
                flight.error, ImageBusyError
            ):  # another process is at it: look again later
                await trio.sleep(POLL)
        except CacheFSError as error:
            if image_id in self._store.queue:
                await note_failure(self._store, image_id, error, self.source.url)
        finally:
            self._prefetching.discard(image_id)
            self._woken.set()

    async def _stat_patiently(self, image_id: str) -> SourceImage:
        for pause in pauses(self._settings.tries):
            try:
                return await self.stat(image_id)
            except CacheFSError as error:
                if not is_passing(error):
                    raise
                log.info("asking for %r again in %.1f s: %s", image_id, pause, error)
            await trio.sleep(pause)
        return await self.stat(image_id)
