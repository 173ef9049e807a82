"""One image on its way into the cache: the only fetch of it, whoever wants it.

States, all owned by the event loop; threads only move bytes and report:

``starting``  no file yet; readers wait
``filling``   spans of chunks arrive; readers wait for theirs alone
``verifying`` all bytes are here; hashing, syncing, publishing
``published`` the image is cached; readers go on reading the same file
``failed``    readers get :attr:`Flight.error` from now on

What may change at an ``await``: the state, the map, the number of readers. A wait therefore looks
at all of them again after it."""

import contextlib
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

import trio

from cachefs.cache import Hasher, Store, Transaction
from cachefs.drivers import Entry
from cachefs.errors import (
    CacheFSError,
    ChecksumError,
    ImageBusyError,
    ImageExistsError,
    SourceError,
)
from cachefs.fetcher.chunks import ChunkMap, Span
from cachefs.fetcher.retry import is_passing, pauses
from cachefs.sources import Source, SourceImage

log = logging.getLogger(__name__)

HASH_STEP = 16 * 2**20
"""Bytes hashed in one go: enough to make a thread worth while, few enough to end soon."""


class FlightState(StrEnum):
    """See the module's docstring."""

    STARTING = "starting"
    FILLING = "filling"
    VERIFYING = "verifying"
    PUBLISHED = "published"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to fetch: *fetches* queued images at once, *connections* to the source for each image,
    *span* bytes asked for in one request, *tries* after a passing failure without progress
    between."""

    fetches: int = 3
    connections: int = 4
    span: int = 16 * 2**20
    tries: int = 5


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a flight is, in bytes."""

    state: FlightState
    size: int
    arrived: int


class Flight:
    """The fetch of one version of one image. Run by :meth:`run`; everything else is for the event
    loop that runs it. *fd* is the file to read from, once :meth:`wait` has returned."""

    def __init__(
        self, store: Store, source: Source, image: SourceImage, settings: Settings
    ) -> None:
        self.image = image
        self.state = FlightState.STARTING
        self.error: CacheFSError | None = None
        self.finished = trio.Event()
        self.fd = -1
        self.opens = 0
        self._readers = 0
        self._store = store
        self._source = source
        self._settings = settings
        self._map = ChunkMap(image.size)
        self._changed = trio.lowlevel.ParkingLot()
        self._cancel = trio.CancelScope()
        self._stopped = threading.Event()
        self._why_cancelled: CacheFSError | None = None
        self._tries = pauses(settings.tries)

    # For readers and the curious

    def progress(self) -> Progress:
        """How far it is."""
        return Progress(self.state, self.image.size, self._map.arrived_bytes)

    def add_reader(self) -> None:
        """Somebody has opened the image: one hit, and the file stays open until they let go."""
        self.opens += 1
        self._readers += 1

    def drop_reader(self) -> None:
        """A reader has closed it."""
        self._readers -= 1
        self._close_if_unused()

    async def wait(self, start: int, stop: int) -> None:
        """Return once the bytes [*start*, *stop*) can be read from :attr:`fd`; raises why they
        cannot. Cancellation only ends the waiting."""
        while True:
            if self.error is not None:
                raise type(self.error)(*self.error.args) from self.error
            if self.fd >= 0 and self._map.covers(start, stop):
                return
            if self._map.demand(start, stop):
                self._changed.unpark_all()  # the workers; readers look and wait again
            await self._changed.park()

    def has(self, start: int, stop: int) -> bool:
        """Whether :meth:`wait` would return at once."""
        return self.error is None and self.fd >= 0 and self._map.covers(start, stop)

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._why_cancelled is not None

    def cancel(self, why: CacheFSError) -> None:
        """Stop fetching and throw away what has come; readers get *why*."""
        self._why_cancelled = why
        self._stopped.set()
        self._cancel.cancel()

    # Running

    async def run(self) -> Entry | None:
        """Fetch, verify, publish. Returns the record, or None when it failed: see :attr:`error`.

        Cancellation from outside throws away what has come and tells readers that the daemon ends.
        """
        entry = None
        self._token = trio.lowlevel.current_trio_token()
        try:
            with self._cancel:
                entry = await self._run()
        except CacheFSError as error:
            await self._note(error)
            self._fail(error)
        except OSError as error:
            failure = CacheFSError(f"cannot write image {self.image.image_id!r}: {error}")
            await self._note(failure)
            self._fail(failure)
        finally:
            self._stopped.set()
            if entry is None and self.error is None:
                self._fail(self._why_cancelled or SourceError("the daemon ended"))
            self.finished.set()
            self._changed.unpark_all()
            self._close_if_unused()
        return entry

    async def _run(self) -> Entry:
        image = self.image
        transaction = await trio.to_thread.run_sync(self._store.begin, image.image_id, image.size)
        with transaction:
            self.fd = os.dup(transaction.fd)
            self._become(FlightState.FILLING)
            hasher = Hasher(image.digest, "sha256")
            workers = self._settings.connections if image.ranges else 1
            try:
                await self._together(lambda: self._hash(hasher), *[self._work] * workers)
                self._become(FlightState.VERIFYING)
                return await self._publish(transaction, hasher)
            except ChecksumError as error:
                await trio.to_thread.run_sync(transaction.reject, error, image.source)
                raise

    async def _together(self, *tasks: Callable[[], Awaitable[None]]) -> None:
        """Run *tasks* until all are done; the first error ends the others, and is raised alone."""
        errors: list[Exception] = []

        async def guard(task: Callable[[], Awaitable[None]]) -> None:
            try:
                await task()
            except (CacheFSError, OSError) as error:
                errors.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(guard, task)
        if errors:
            raise errors[0]

    async def _publish(self, transaction: Transaction, hasher: Hasher) -> Entry:
        digest = hasher.finish()

        def commit() -> Entry:
            return transaction.commit(
                checksum=digest,
                verified=hasher.verifies,
                source=self.image.source,
                hits=self.opens,
            )

        counted = self.opens
        with trio.CancelScope(shield=True):
            entry = await trio.to_thread.run_sync(commit)
        for _ in range(self.opens - counted):  # opened while the commit ran
            self._store.hit(self.image.image_id)
        self._become(FlightState.PUBLISHED)
        return entry

    async def _work(self) -> None:
        """Get span after span until none is missing."""
        while not self._map.complete:
            span = self._claim()
            if span is None:
                await self._changed.park()
                continue
            try:
                await self._get(span)
            except CacheFSError as error:
                pause = next(self._tries, None) if is_passing(error) else None
                if pause is None:
                    raise
                log.info("fetching %r again in %.1f s: %s", self.image.image_id, pause, error)
                await trio.sleep(pause)
            finally:
                self._map.release(span)
                self._changed.unpark_all()

    def _claim(self) -> Span | None:
        if not self.image.ranges:
            return self._map.claim_next(self.image.size)
        return self._map.claim_demanded(self._settings.span) or self._map.claim_next(
            self._settings.span
        )

    async def _get(self, span: Span) -> None:
        start = span.start if self.image.ranges else 0
        fd = os.dup(self.fd)  # the thread's own: it may outlive a cancelled flight by one piece
        try:
            await trio.to_thread.run_sync(
                self._download, fd, start, span.stop, abandon_on_cancel=True
            )
        except trio.Cancelled:
            self._stopped.set()
            raise

    def _download(self, fd: int, start: int, stop: int) -> None:
        """In a thread: write the bytes [*start*, *stop*) as they come, and report whole chunks."""
        try:
            chunk, position, reported = self._map.chunk, start, start
            with contextlib.closing(self._source.read(self.image, start, stop)) as pieces:
                for piece in pieces:
                    if self._stopped.is_set():
                        return
                    position += _write_at(fd, piece, position)
                    whole = position if position == stop else position - position % chunk
                    if whole > reported:
                        self._token.run_sync_soon(self._arrived, reported, whole)
                        reported = whole
            if position != stop:
                raise SourceError(f"the source sent {position - start} of {stop - start} bytes")
        finally:
            os.close(fd)

    def _arrived(self, start: int, stop: int) -> None:
        self._map.arrived(start, stop)
        self._tries = pauses(self._settings.tries)
        self._changed.unpark_all()

    async def _hash(self, hasher: Hasher) -> None:
        """Follow the contiguous part, so that the last byte's arrival leaves little to do."""
        hashed, size = 0, self.image.size
        while hashed < size:
            stop = min(self._map.prefix, hashed + HASH_STEP)
            if stop - hashed < HASH_STEP and stop < size:
                await self._changed.park()
                continue
            await trio.to_thread.run_sync(_hash_range, hasher, self.fd, hashed, stop)
            hashed = stop

    async def _note(self, error: CacheFSError) -> None:
        """Write a failure down before any reader hears of it; the loser of a race has not failed,
        and a wrong checksum is written down already, with its bytes."""
        if not isinstance(error, ImageExistsError | ImageBusyError | ChecksumError):
            await note_failure(self._store, self.image.image_id, error, self.image.source)

    def _become(self, state: FlightState) -> None:
        self.state = state
        self._changed.unpark_all()

    def _fail(self, error: CacheFSError) -> None:
        self.error = error
        self._become(FlightState.FAILED)

    def _close_if_unused(self) -> None:
        if self.finished.is_set() and self._readers == 0 and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


async def note_failure(
    store: Store, image_id: str, error: CacheFSError, source: str | None
) -> None:
    """Make *error* the reason why the image is invalid. Not cancellable; what goes wrong is
    logged."""
    log.warning("could not fetch %r: %s", image_id, error)
    with trio.CancelScope(shield=True):
        try:
            await trio.to_thread.run_sync(lambda: store.fail(image_id, error, source=source))
        except OSError as trouble:
            log.error("could not write down why %r failed: %s", image_id, trouble)


def _write_at(fd: int, data: bytes, offset: int) -> int:
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)
    return done


def _hash_range(hasher: Hasher, fd: int, start: int, stop: int) -> None:
    buffer = memoryview(bytearray(2**20))
    while start < stop:
        count = os.preadv(fd, [buffer[: stop - start]], start)
        hasher.update(buffer[:count])
        start += count
