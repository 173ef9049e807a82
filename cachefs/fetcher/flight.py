"""One image on its way into the cache: the only fetch of it, however many want it.

States, all owned by the event loop:

``starting``  no file yet; readers wait, perhaps for room (:attr:`Flight.waits_for_room`)
``filling``   chunks arrive; readers wait for theirs alone
``verifying`` all bytes are here; the digest is compared
``publishing`` the digest is right; syncing, recording, renaming
``published`` the image is cached; readers go on reading the same file
``failed``    readers get :attr:`Flight.error` from now on

What may change at an ``await``: the state, the map, the number of readers. A wait therefore looks
at all of them again after it."""

import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TypeVar

import trio

from cachefs.cache import Hasher, Store, Transaction, Version, share
from cachefs.drivers import Entry
from cachefs.errors import (
    CacheFSError,
    ChecksumError,
    ImageBusyError,
    ImageTooLargeError,
    NoRoomError,
    SourceError,
    TooManyFilesError,
    is_shortage_of_files,
    without_traceback,
)
from cachefs.fetcher.beside import despite_others
from cachefs.fetcher.concurrency import gather
from cachefs.fetcher.flight_file import FlightFile
from cachefs.fetcher.rejected import version_name
from cachefs.fetcher.retry import is_final
from cachefs.fetcher.room import ROOM_POLL
from cachefs.fetcher.traffic import Traffic
from cachefs.fetcher.transfer import FetchSettings, Transfer
from cachefs.image import Digest
from cachefs.sources import Source, SourceImage, is_passing

log = logging.getLogger(__name__)

HASH_STEP = 16 * 2**20
"""Bytes hashed in one go: enough to make a thread worth while, few enough to end soon."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

T = TypeVar("T")


class FlightState(StrEnum):
    """See the module's docstring."""

    STARTING = "starting"
    FILLING = "filling"
    VERIFYING = "verifying"
    PUBLISHING = "publishing"
    PUBLISHED = "published"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the fetch of an image is: *arrived* of *size* bytes, both 0 while the source has not
    been asked once more. *opens* are those since it began; *waiting* is what the fetch waits for
    before it can begin."""

    state: FlightState
    size: int = 0
    arrived: int = 0
    opens: int = 0
    source: str | None = None
    digest: Digest | None = None
    waiting: str | None = None


class Flight:
    """The fetch of one version of one image. :meth:`run` runs it; everything is for the event loop
    that runs it."""

    def __init__(
        self,
        store: Store,
        source: Source,
        image: SourceImage,
        settings: FetchSettings,
        traffic: Traffic,
    ) -> None:
        self.image = image
        self.state = FlightState.STARTING
        self.error: CacheFSError | None = None
        self.begun = trio.Event()
        self.finished = trio.Event()
        self.file = FlightFile()
        self.opens = 0
        self.is_unwanted = False
        """Whether a user has cancelled it: then it is not tried once more."""
        self.waits_for_room: str | None = None
        self._recorded = False
        self._verified = image.digest is None
        self._readers = 0
        self._ahead = False
        self._insists = False
        self._store = store
        self._settings = settings
        self._traffic = traffic
        self._source = source
        self._transfer = self._new_transfer()
        self._hashing = trio.CapacityLimiter(1)
        self._cancel = trio.CancelScope()
        self._why_cancelled: CacheFSError | None = None

    # For readers and the curious

    @property
    def fd(self) -> int:
        """The file to read from, once :meth:`wait` has returned; -1 where there is none."""
        return self.file.fd

    def progress(self) -> Progress:
        """How far it is."""
        image = self.image
        arrived = self._transfer.map.arrived_bytes
        return Progress(
            self.state,
            image.size,
            arrived,
            self.opens,
            image.source,
            image.digest,
            self.waits_for_room,
        )

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
        if self._readers == 0:
            self._traffic.room.changed()  # it may go, or need not wait for room any more
        wanted = self._settings.keep or self._store.quick.is_queued(self.image.image_id)
        if self._readers == 0 and not wanted and not self.finished.is_set():
            self.cancel(CacheFSError(f"nobody reads {self.image.image_id!r} any more"))

    def insist(self) -> None:
        """Fetch the image although another program caches it first: the kernel is about to open
        this fetch, and could not be sent on to what is cached."""
        self._insists = True

    def count_hit(self) -> None:
        """The image was opened once more; recorded when it is published."""
        if self._recorded:
            self._store.quick.hit(self.image.image_id)
        else:
            self.opens += 1

    async def begin(self) -> None:
        """Return once there is a file to read from; raises why there is none (no room, say)."""
        await self.begun.wait()
        if self.error is not None:
            raise without_traceback(self.error)

    async def wait(self, start: int, stop: int) -> None:
        """Return once the bytes [*start*, *stop*) can be read from :attr:`fd`; raises why they
        cannot. Cancellation only ends the waiting."""
        while not self.has(start, stop):
            if self.error is not None:
                raise without_traceback(self.error)
            if self.finished.is_set():
                raise CacheFSError(f"another program has emptied image {self.image.image_id!r}")
            if self.fd >= 0 and self._transfer.map.demand(start, stop):
                self._transfer.idle.unpark_all()
            await self._transfer.changed.park()

    def has(self, start: int, stop: int) -> bool:
        """Whether :meth:`wait` would return at once.

        INVARIANT: nobody has ever read all of an image that is not verified: what arrives last is
        given to readers only once the digest is known to be right.
        """
        chunks = self._transfer.map
        return (
            self.error is None
            and chunks.covers(start, stop)
            and (self._verified or not chunks.completes(start, stop))
            and self.file.has_length(self.image.size)
        )

    @property
    def is_published(self) -> bool:
        """Whether the image has been cached by this fetch."""
        return self.state is FlightState.PUBLISHED

    @property
    def can_be_joined(self) -> bool:
        """Whether another reader may be added: it is under way, or done and its file open still,
        for others who read it."""
        if self.cancelled or self.error is not None:
            return False
        return not self.finished.is_set() or self.fd >= 0

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._why_cancelled is not None

    def cancel(self, why: CacheFSError) -> None:
        """Stop fetching and throw away what has come; readers get *why*."""
        self._why_cancelled = why
        self._cancel.cancel()

    # Running

    async def run(self, after: trio.Event | None = None) -> Entry | None:
        """Once *after* is set: fetch, verify, publish. Returns the record, or None when it failed:
        see :attr:`error`.

        Cancellation from outside keeps what has come for another time, and tells readers that the
        daemon ends.
        """
        entry = None
        try:
            with self._cancel:
                if after is not None:  # also once cancelled: who comes next waits for this one
                    with trio.CancelScope(shield=True):
                        await after.wait()
                entry = await despite_others(
                    self._run,
                    is_read=lambda: self._readers > 0,
                    has_begun=self._goes_on,
                    start_over=self._start_over,
                )
        except CacheFSError as error:
            await self._fail(error)
        except OSError as error:
            kind = NoRoomError if error.errno in _FULL else CacheFSError
            kind = TooManyFilesError if is_shortage_of_files(error) else kind
            await self._fail(kind(f"cannot write image {self.image.image_id!r}: {error}"))
        except Exception as error:
            log.exception("the fetch of %r met an error that nobody foresaw", self.image.image_id)
            await self._fail(CacheFSError(f"cannot fetch {self.image.image_id!r}: {error!r}"))
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
        transaction = await self._begin_once_there_is_room()
        how: Callable[[Transaction], None] = self._keep_unless_cancelled
        try:
            return await self._fetch(transaction)
        except ChecksumError as error:
            how = partial(
                Transaction.reject,
                error=without_traceback(error),
                source=self.image.source,
                version=version_name(self.image),
                wanted=True,  # who tries it once more says when it is not
            )
            raise
        except Exception as error:
            how = Transaction.keep if is_passing(error) else Transaction.abort
            raise
        finally:
            with trio.CancelScope(shield=True):
                await self._in_thread(partial(_end, transaction, how))

    def _keep_unless_cancelled(self, transaction: Transaction) -> None:
        if not self.cancelled:
            transaction.keep()

    async def _begin_once_there_is_room(self) -> Transaction:
        """Readers wait for room, in no thread and for so long at most; what is only queued does
        not wait here, where it would keep others from their turn. Raises NoRoomError."""
        until = trio.current_time() + self._settings.room_timeout
        try:
            while True:
                change = self._traffic.room.next_change
                try:
                    return await self._in_thread(self._begin)
                except ImageTooLargeError:
                    raise
                except NoRoomError as error:
                    if self._readers == 0 or trio.current_time() >= until:
                        raise
                    if self.waits_for_room is None:
                        log.info("%r waits for room: %s", self.image.image_id, error)
                    self.waits_for_room = str(error)
                self._go_ahead()
                with trio.move_on_at(min(until, trio.current_time() + ROOM_POLL)):
                    await change.wait()
        finally:
            self.waits_for_room = None
            self._go_ahead()

    def _begin(self) -> Transaction:
        image = self.image
        version = Version(image.size, None, None)
        if self._transfer.ranges:  # a stream can only start over
            digest = str(image.digest) if image.digest else None
            version = Version(image.size, _tag(image), digest)
        return self._store.begin(
            image.image_id,
            image.size,
            version,
            beside=self._readers > 0,  # one number: see the documents' "who owns which state"
            although_cached=self._goes_on(),
        )

    def _goes_on(self) -> bool:
        return self.begun.is_set() or self._insists

    def _start_over(self) -> None:
        """Another program has our file: fetch into another one."""
        self.file.give_up()
        self._verified = self.image.digest is None
        before, self._transfer = self._transfer, self._new_transfer()
        self._become(FlightState.STARTING)
        before.changed.unpark_all()

    def _new_transfer(self) -> Transfer:
        return Transfer(
            self._source, self.image, self._settings, self._traffic, lambda: self._readers > 0
        )

    async def _fetch(self, transaction: Transaction) -> Entry:
        assert transaction.partial is not None
        chunks = transaction.partial
        self.file.open(transaction.fd)
        self._become(FlightState.FILLING)
        self.begun.set()
        hasher = Hasher(self.image.digest, "sha256")
        await gather(
            lambda: self._hash(hasher),
            lambda: self._transfer.run(transaction.fd, chunks),
        )
        self._become(FlightState.VERIFYING)
        return await self._publish(transaction, hasher)

    async def _publish(self, transaction: Transaction, hasher: Hasher) -> Entry:
        try:
            digest, counted = hasher.finish(), self.opens
        except ChecksumError as error:
            image = self.image
            raise ChecksumError(f"{image.image_id!r} at {image.source}: {error}") from error
        self._verified = True
        self._become(FlightState.PUBLISHING)

        def commit() -> Entry:
            return transaction.commit(
                checksum=digest,
                verified=hasher.verifies,
                source=self.image.source,
                hits=counted,
                modified=self.image.modified,
                private=self.image.private,
            )

        with trio.CancelScope(shield=True):
            entry = await self._in_thread(commit)
        with contextlib.suppress(BlockingIOError):  # evicted at this very moment
            share(self.fd)  # readers hold it from here on as they would a cached image
        for _ in range(self.opens - counted):  # opened while the commit ran
            self._store.quick.hit(self.image.image_id)
        self._recorded = True  # nothing is awaited in between: no hit is lost
        return entry

    async def _hash(self, hasher: Hasher) -> None:
        """Follow the contiguous part, so that the last byte's arrival leaves little to do."""
        hashed, size = 0, self.image.size
        while hashed < size:
            stop = min(self._transfer.map.prefix, hashed + HASH_STEP)
            if stop == hashed or (stop - hashed < HASH_STEP and stop < size):
                await self._transfer.changed.park()
                continue
            step = partial(_hash_range, hasher, self.fd, hashed, stop)
            await trio.to_thread.run_sync(step, limiter=self._hashing)
            hashed = stop

    async def _fail(self, error: CacheFSError) -> None:
        """Write an authoritative no down before any reader hears of it; of a wrong checksum that is
        done already, with its bytes. What passes is the queue's to remember."""
        image = self.image
        if isinstance(error, ChecksumError):
            log.warning("could not fetch %r from %s: %s", image.image_id, image.source, error)
        elif is_final(error):
            await note_failure(self._store, image.image_id, error, image.source, self._traffic.disk)
        self.error = without_traceback(error)  # without its frames, which may hold a connection

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """The result of *work*, which may wait for the disk; not cancellable once it has begun."""
        return await trio.to_thread.run_sync(work, limiter=self._traffic.disk)

    def _become(self, state: FlightState) -> None:
        self.state = state
        self._transfer.changed.unpark_all()
        self._transfer.idle.unpark_all()

    def _go_ahead(self) -> None:
        """Count among those that go first exactly while it has a reader and is not done. Not while
        it waits for room: those that have it must get on."""
        waits = self.finished.is_set() or self.waits_for_room is not None
        ahead = self._readers > 0 and not waits
        if ahead and not self._ahead:
            self._traffic.precedence.enter()
        elif self._ahead and not ahead:
            self._traffic.precedence.leave()
        self._ahead = ahead

    def _close_if_unused(self) -> None:
        if self.finished.is_set() and self._readers == 0:
            self.file.close()


async def note_failure(
    store: Store,
    image_id: str,
    error: CacheFSError,
    source: str | None,
    disk: trio.CapacityLimiter,
) -> bool:
    """Make *error* the reason why the image is invalid. Not cancellable; what goes wrong is
    logged, and then it is False."""
    log.warning("could not fetch %r from %s: %s", image_id, source, error)
    with trio.CancelScope(shield=True):
        try:
            await trio.to_thread.run_sync(
                lambda: store.fail(image_id, error, source=source), limiter=disk
            )
        except (CacheFSError, OSError) as trouble:
            log.error("could not write down why %r failed: %s", image_id, trouble)
            return False
    return True


def _hash_range(hasher: Hasher, fd: int, start: int, stop: int) -> None:
    buffer = memoryview(bytearray(2**20))
    while start < stop:
        count = os.preadv(fd, [buffer[: stop - start]], start)
        if not count:
            raise ImageBusyError("another program has emptied the incomplete file")
        hasher.update(buffer[:count])
        start += count


def _end(transaction: Transaction, how: Callable[[Transaction], None]) -> None:
    """End a transaction, unless it has been committed; where *how* does not, it is aborted."""
    with transaction:
        how(transaction)


def _tag(image: SourceImage) -> str | None:
    """What tells this version of the image for good: the source's name for it, which means nothing
    at another source, as a digest since it may have any length. A weak ETag may stand for other
    bytes tomorrow (RFC 9110, 8.8.1)."""
    if image.version is None or image.version.startswith("W/"):
        return None
    return hashlib.sha256(f"{image.source}\n{image.version}".encode()).hexdigest()
