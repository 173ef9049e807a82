"""What control files act on: the cache, the fetcher and the evictor, seen as an operator sees them.

Methods block and run in threads started by trio; what belongs to the event loop is asked of it.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import trio

from cachefs.cache import Store
from cachefs.drivers import Entry
from cachefs.errors import ImageExistsError, ImageNotFoundError, InvalidValueError
from cachefs.evictor import Evictor
from cachefs.fetcher import Fetcher
from cachefs.image import ImageRecord, State
from cachefs.settings import RunningSettings, Setting
from cachefs.vfs.images import Images


@dataclass(frozen=True, slots=True)
class Worker:
    """The process that answers requests: *started* in seconds, *restarts* since the mount was made;
    *supervisor* is the process that holds the mount and replaces this one."""

    pid: int
    started: float
    restarts: int = 0
    supervisor: int = 0


@dataclass(frozen=True, slots=True)
class Transport:
    """How requests come: see ``status`` in the control directory."""

    mode: str
    passthrough: bool
    why: str


class Operator:
    """The operator's view of one daemon."""

    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        evictor: Evictor,
        images: Images,
        settings: RunningSettings,
        *,
        worker: Worker,
        transport: Transport,
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._evictor = evictor
        self._images = images
        self._settings = settings
        self._worker = worker
        self._transport = transport
        self._cleaned: dict[str, int] = {}

    # The queue

    def queued(self) -> list[str]:
        """Queued IDs in queue order, without those whose fetch has begun."""
        under_way = self._fetcher.under_way()
        return [image_id for image_id in self._store.queue.ids() if image_id not in under_way]

    def enqueue(self, image_id: str) -> None:
        """Queue an image. Raises ImageExistsError when it is cached or being fetched."""
        if self._fetcher.is_under_way(image_id):
            raise ImageExistsError(f"image {image_id!r} is being fetched already")
        self._fetcher.forget_answer(image_id)
        self._store.enqueue(image_id)
        self._fetcher.wake()

    def enqueue_unless_there(self, image_id: str) -> None:
        """Queue an image, or do nothing where it is queued, cached or being fetched: for lists."""
        with contextlib.suppress(ImageExistsError):
            self.enqueue(image_id)

    def unqueue(self, image_id: str) -> None:
        """Take an image out of the queue. Raises ImageNotFoundError."""
        if not self._store.queue.discard(image_id):
            raise ImageNotFoundError(f"image {image_id!r} is not queued")

    def queue_record(self, image_id: str) -> ImageRecord | None:
        """A queued image's record; its *last_modified* is when it was queued."""
        since = self._store.queue.since(image_id)
        if since is None or self._fetcher.is_under_way(image_id):
            return None
        return ImageRecord(
            image_id,
            0,
            last_modified=since,
            state=State.QUEUED,
            source=self._fetcher.source.url,
            priority=self._store.queue.priority(image_id),
        )

    def set_priority(self, image_id: str, text: str) -> None:
        """Have a queued image fetched before those of lower priority. Raises InvalidValueError."""
        if not re.fullmatch(r"[+-]?[0-9]{1,6}", text):
            raise InvalidValueError(f"{text[:40]!r} is not a priority, a whole number")
        if image_id in self._store.queue:
            self._store.queue.set_priority(image_id, int(text))

    # Fetches

    def incomplete(self) -> list[str]:
        """The images being fetched here, and those that another process is caching."""
        return sorted({*self._fetcher.under_way(), *(name for name, _ in self._store.incomplete())})

    def cancel(self, image_id: str) -> None:
        """Cancel a fetch; it has ended when this returns. Raises ImageNotFoundError."""
        trio.from_thread.run(self._fetcher.cancel, image_id)

    def incomplete_record(self, image_id: str) -> ImageRecord | None:
        """The record of an image being fetched, with its progress in bytes; after a failure that is
        being tried again, with its reason."""
        failure = self._store.failures.get(image_id)
        error = failure.error if failure else None
        flight = self._fetcher.flights.get(image_id)
        if flight is not None:
            progress = flight.progress()
            return ImageRecord(
                image_id,
                progress.size,
                hits=flight.opens,
                state=State.INCOMPLETE,
                source=flight.image.source,
                checksum=str(flight.image.digest) if flight.image.digest else None,
                progress=progress.arrived,
                error=error,
            )
        if self._fetcher.is_under_way(image_id):  # between two tries
            return ImageRecord(image_id, 0, state=State.INCOMPLETE, progress=0, error=error)
        for name, status in self._store.incomplete():
            if name == image_id:
                return ImageRecord(
                    image_id,
                    status.st_size,
                    last_modified=status.st_mtime,
                    state=State.INCOMPLETE,
                    progress=min(status.st_size, status.st_blocks * 512),
                )
        return None

    # Failures

    def invalid(self) -> list[str]:
        """The images that could not be had, without those that are being tried again."""
        failed = self._store.failures.ids()
        under_way = self._fetcher.under_way()
        return [image_id for image_id in failed if image_id not in under_way]

    def forget_failure(self, image_id: str) -> None:
        """Forget a failure and its bytes. Raises ImageNotFoundError, also while it is being tried
        again."""
        if self._fetcher.is_under_way(image_id) or not self._store.failures.discard(image_id):
            raise ImageNotFoundError(f"image {image_id!r} is not invalid")

    def invalid_record(self, image_id: str) -> ImageRecord | None:
        """The record of a failure, with its reason."""
        failure = self._store.failures.get(image_id)
        if failure is None or self._fetcher.is_under_way(image_id):
            return None
        return ImageRecord(
            image_id,
            failure.size,
            last_modified=failure.when,
            state=State.INVALID,
            source=failure.source,
            error=failure.error,
        )

    # Cached images

    def cached_page(self, position: int, limit: int) -> Iterable[Entry]:
        """Cached images whose number is above *position*."""
        return self._store.driver.entries_after(position, limit)

    def cached_record(self, image_id: str) -> ImageRecord | None:
        """The record of a cached image."""
        entry = self._store.get(image_id)
        return cached_record(entry) if entry else None

    def evict(self, image_id: str) -> None:
        """Evict a cached image. Raises ImageNotFoundError, ImageBusyError where it is pinned."""
        self._store.evict(image_id)

    def pinned(self) -> list[str]:
        """The pinned images."""
        return [entry.image_id for entry in self._store.driver.pinned()]

    def pinned_record(self, image_id: str) -> ImageRecord | None:
        """The record of a pinned image."""
        entry = self._store.get(image_id)
        return cached_record(entry) if entry and entry.pinned else None

    def pin(self, image_id: str) -> None:
        """Pin a cached image. Raises ImageNotFoundError."""
        self._store.pin(image_id, True)

    def unpin(self, image_id: str) -> None:
        """Unpin an image. Raises ImageNotFoundError where it is not pinned."""
        if self.pinned_record(image_id) is None:
            raise ImageNotFoundError(f"image {image_id!r} is not pinned")
        self._store.pin(image_id, False)

    # Doing and setting

    def prune(self) -> None:
        """Evict what exceeds the limits."""
        self._evictor.prune()

    def pruned(self) -> str:
        """The last pruning that was asked for or found something to do, as JSON; ``{}`` before."""
        last = self._evictor.last_pruned
        return json.dumps(asdict(last) if last else {}) + "\n"

    def clean(self, stall_time: float | None) -> None:
        """Remove failures and stalled partial files."""
        invalid, stalled = self._evictor.clean(stall_time)
        self._cleaned = {"invalid": invalid, "stalled": stalled}

    def cleaned(self) -> str:
        """The last cleaning as JSON; ``{}`` before the first."""
        return json.dumps(self._cleaned) + "\n"

    def setting(self, setting: Setting[Any]) -> str:
        """The value of a setting now, as text, without secrets."""
        value = self._settings.current.given[setting.name].value
        return setting.kind.shown_text(value)

    def change(self, setting: Setting[Any], text: str) -> None:
        """Change a setting for the life of the mount; what is over a new limit is gone when this
        returns. Raises InvalidValueError for a bad value."""
        self._settings.change(setting, text)
        self._evictor.keep_limits()

    def config(self) -> Mapping[str, object]:
        """The document of ``control/config``: of each setting its value and where it is from."""
        return self._settings.current.shown()

    def size(self) -> int:
        """Bytes cached."""
        return self._store.totals().size

    def status(self) -> dict[str, object]:
        """The document of ``control/status``; sizes in bytes."""
        totals, usage = self._store.totals(), self._store.usage()
        return {
            "size": totals.size,
            "max_size": usage.limit,
            "min_free": str(self._settings.current.min_free),
            "reserved": usage.reserved,
            "images": totals.images,
            "hits": self._images.hits,
            "misses": self._images.misses,
            "evictions": self._store.evictions,
            "queued": len(self.queued()),
            "fetching": len(self.incomplete()),
            "invalid": len(self.invalid()),
            "driver": self._store.driver.name,
            "cache_dir": str(self._store.layout.base),
            "sources": [
                {"url": url, "healthy": health.healthy, "error": health.error}
                for url, health in self._fetcher.sources()
            ],
            "transport": asdict(self._transport),
            "worker": asdict(self._worker),
        }


def cached_record(entry: Entry) -> ImageRecord:
    """A driver's entry as a record."""
    return ImageRecord(
        image_id=entry.image_id,
        size=entry.size,
        hits=entry.hits,
        last_accessed=entry.last_accessed,
        last_modified=entry.last_modified,
        checksum=entry.checksum,
        state=State.CACHED,
        pinned=entry.pinned,
        fetched=entry.fetched,
        source=entry.source,
        verified=entry.verified,
    )
