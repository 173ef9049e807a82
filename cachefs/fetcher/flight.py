"""One image on its way into the cache: the only fetch of it, whoever wants it.

States, all owned by the event loop:

``starting``  no file yet; readers wait
``filling``   chunks arrive; readers wait for theirs alone
``verifying`` all bytes are here; hashing, syncing, publishing
``published`` the image is cached; readers go on reading the same file
``failed``    readers get :attr:`Flight.error` from now on

What may change at an ``await``: the state, the map, the number of readers. A wait therefore looks
at all of them again after it."""

import contextlib
import logging
import os
from dataclasses import dataclass
from enum import StrEnum

import trio

from cachefs.cache import Hasher, Store, Transaction, Version, share
from cachefs.drivers import Entry
from cachefs.errors import (
    CacheFSError,
    ChecksumError,
    ImageBusyError,
    ImageExistsError,
    SourceError,
)
from cachefs.fetcher.answers import again
from cachefs.fetcher.retry import is_passing
from cachefs.fetcher.together import together
from cachefs.fetcher.transfer import Settings, Traffic, Transfer
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
class Progress:
    """How far a flight is, in bytes."""

    state: FlightState
    size: int
    arrived: int


class Flight:
    """The fetch of one version of one image. :meth:`run` runs it; everything is for the event loop
    that runs it. *fd* is the file to read from, once :meth:`wait` has returned."""

    def __init__(
        self,
        store: Store,
        source: Source,
        image: SourceImage,
        settings: Settings,
        traffic: Traffic,
    ) -> None:
        self.image = image
        self.state = FlightState.STARTING
        self.error: CacheFSError | None = None
        self.begun = trio.Event()
        self.finished = trio.Event()
        self.fd = -1
        self.opens = 0
        self._readers = 0
        self._ahead = False
        self._store = store
        self._settings = settings
        self._traffic = traffic
        self._transfer = Transfer(source, image, settings, traffic, lambda: self._readers > 0)
        self._cancel = trio.CancelScope()
        self._why_cancelled: CacheFSError | None = None

    # For readers and the curious

    def progress(self) -> Progress:
        """How far it is."""
        return Progress(self.state, self.image.size, self._transfer.map.arrived_bytes)

    def add_reader(self) -> None:
        """The image is open: the file stays open until :meth:`drop_reader`."""
        self._readers += 1
        self._go_ahead()

    def drop_reader(self) -> None:
        """A reader has closed it. The last one ends the fetch where the settings say so, unless the
        image is queued."""
        self._readers -= 1
        self._go_ahead()
        self._close_if_unused()
        wanted = self._settings.keep or self.image.image_id in self._store.queue
        if self._readers == 0 and not wanted and not self.finished.is_set():
            self.cancel(CacheFSError(f"nobody reads {self.image.image_id!r} any more"))

    def count_hit(self) -> None:
        """Somebody has opened the image; recorded when it is published."""
        if self.state is FlightState.PUBLISHED:
            self._store.hit(self.image.image_id)
        else:
            self.opens += 1

    async def begin(self) -> None:
        """Return once there is a file to read from; raises why there is none (no room, say)."""
        await self.begun.wait()
        if self.error is not None:
            raise again(self.error)

    async def wait(self, start: int, stop: int) -> None:
        """Return once the bytes [*start*, *stop*) can be read from :attr:`fd`; raises why they
        cannot. Cancellation only ends the waiting."""
        while not self.has(start, stop):
            if self.error is not None:
                raise again(self.error)
            if self.fd >= 0 and self._transfer.map.demand(start, stop):
                self._transfer.changed.unpark_all()  # workers go; readers look, and wait again
            await self._transfer.changed.park()

    def has(self, start: int, stop: int) -> bool:
        """Whether :meth:`wait` would return at once."""
        return self.error is None and self.fd >= 0 and self._transfer.map.covers(start, stop)

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._why_cancelled is not None

    def cancel(self, why: CacheFSError) -> None:
        """Stop fetching and throw away what has come; readers get *why*."""
        self._why_cancelled = why
        self._cancel.cancel()

    # Running

    async def run(self) -> Entry | None:
        """Fetch, verify, publish. Returns the record, or None when it failed: see :attr:`error`.

        Cancellation from outside keeps what has come for another time, and tells readers that the
        daemon ends.
        """
        entry = None
        try:
            with self._cancel:
                entry = await self._run()
        except CacheFSError as error:
            await self._fail(error)
        except OSError as error:
            await self._fail(CacheFSError(f"cannot write image {self.image.image_id!r}: {error}"))
        finally:
            if entry is None and self.error is None:
                self.error = self._why_cancelled or SourceError("the daemon ended")
            self._become(FlightState.PUBLISHED if entry else FlightState.FAILED)
            self.begun.set()
            self.finished.set()
            self._go_ahead()
            self._close_if_unused()
        return entry

    async def _run(self) -> Entry:
        transaction = await trio.to_thread.run_sync(self._begin)
        with transaction:
            try:
                return await self._fetch(transaction)
            except ChecksumError as error:
                await trio.to_thread.run_sync(transaction.reject, error, self.image.source)
                raise
            except CacheFSError as error:
                if is_passing(error):
                    transaction.keep()
                raise
            except BaseException:  # cancelled, which a nursery may wrap in a group
                if not self.cancelled:
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(transaction.keep)
                raise

    def _begin(self) -> Transaction:
        image = self.image
        digest = str(image.digest) if image.digest else None
        tag = image.version if image.ranges else None  # a stream can only start over
        version = Version(image.size, tag, digest if image.ranges else None)
        return self._store.begin(image.image_id, image.size, version)

    async def _fetch(self, transaction: Transaction) -> Entry:
        partial = transaction.partial
        assert partial is not None
        # A description of its own, without the writer's lock: readers may keep it after a failure.
        self.fd = os.open(f"/proc/self/fd/{transaction.fd}", os.O_RDONLY | os.O_CLOEXEC)
        self._become(FlightState.FILLING)
        self.begun.set()
        hasher = Hasher(self.image.digest, "sha256")
        await together(
            lambda: self._hash(hasher),
            lambda: self._transfer.run(transaction.fd, partial),
        )
        self._become(FlightState.VERIFYING)
        return await self._publish(transaction, hasher)

    async def _publish(self, transaction: Transaction, hasher: Hasher) -> Entry:
        digest, counted = hasher.finish(), self.opens

        def commit() -> Entry:
            return transaction.commit(
                checksum=digest,
                verified=hasher.verifies,
                source=self.image.source,
                hits=counted,
            )

        with trio.CancelScope(shield=True):
            entry = await trio.to_thread.run_sync(commit)
        with contextlib.suppress(BlockingIOError):  # evicted at this very moment
            share(self.fd)  # readers hold it from here on as they would a cached image
        for _ in range(self.opens - counted):  # opened while the commit ran
            self._store.hit(self.image.image_id)
        return entry

    async def _hash(self, hasher: Hasher) -> None:
        """Follow the contiguous part, so that the last byte's arrival leaves little to do."""
        hashed, size = 0, self.image.size
        while hashed < size:
            stop = min(self._transfer.map.prefix, hashed + HASH_STEP)
            if stop == hashed or (stop - hashed < HASH_STEP and stop < size):
                await self._transfer.changed.park()
                continue
            await trio.to_thread.run_sync(_hash_range, hasher, self.fd, hashed, stop)
            hashed = stop

    async def _fail(self, error: CacheFSError) -> None:
        """Write a failure down before any reader hears of it; the loser of a race has not failed,
        and a wrong checksum is written down already, with its bytes."""
        if not isinstance(error, ImageExistsError | ImageBusyError | ChecksumError):
            await note_failure(self._store, self.image.image_id, error, self.image.source)
        self.error = error

    def _become(self, state: FlightState) -> None:
        self.state = state
        self._transfer.changed.unpark_all()

    def _go_ahead(self) -> None:
        """Count among those that go first exactly while somebody reads it and it is not done."""
        ahead = self._readers > 0 and not self.finished.is_set()
        if ahead and not self._ahead:
            self._traffic.precedence.enter()
        elif self._ahead and not ahead:
            self._traffic.precedence.leave()
        self._ahead = ahead

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


def _hash_range(hasher: Hasher, fd: int, start: int, stop: int) -> None:
    buffer = memoryview(bytearray(2**20))
    while start < stop:
        count = os.preadv(fd, [buffer[: stop - start]], start)
        hasher.update(buffer[:count])
        start += count
