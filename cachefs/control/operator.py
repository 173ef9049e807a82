"""What control files act on: the cache, the fetcher and the evictor, seen as an operator sees them.

Methods block and run in threads started by :func:`trio.to_thread.run_sync`; what belongs to the
event loop is asked of it by :class:`~cachefs.fetcher.FetcherPortal` alone.
"""

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cachefs.cache import Store
from cachefs.drivers import Entry
from cachefs.errors import ImageExistsError, ImageNotFoundError, InvalidValueError
from cachefs.evictor import Evictor
from cachefs.fetcher import FetcherPortal
from cachefs.image import ImageRecord, State
from cachefs.settings import RunningSettings, Setting
from cachefs.vfs.hits import Hits
from cachefs.vfs.images import Images


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """The process that answers requests: *started* in seconds, *restarts* since the mount was made;
    *supervisor* asks for the process that holds the mount and replaces this one, None once that is
    gone."""

    pid: int
    started: float
    restarts: int = 0
    supervisor: Callable[[], int | None] = lambda: None

    def document(self) -> dict[str, object]:
        """As ``control/status`` shows it, now."""
        return asdict(self) | {"supervisor": self.supervisor()}


@dataclass(frozen=True, slots=True)
class TransportStatus:
    """How requests come: see ``status`` in the control directory."""

    mode: str
    passthrough: bool
    why: str


class Operator:
    """The operator's view of one daemon. Every method runs in a thread that trio has started;
    *quick* is the part of the cache that a listing reads in the event loop."""

    def __init__(
        self,
        store: Store,
        fetcher: FetcherPortal,
        evictor: Evictor,
        images: Images,
        settings: RunningSettings,
        *,
        hits: Hits,
        worker: WorkerStatus,
        transport: TransportStatus,
    ) -> None:
        self.quick = store.quick
        self._store = store
        self._fetcher = fetcher
        self._evictor = evictor
        self._images = images
        self._hits = hits
        self._settings = settings
        self._worker = worker
        self._transport = transport
        self._cleaned: dict[str, int] = {}

    # The queue

    def queued(self) -> list[str]:
        """Queued IDs in queue order, without those whose fetch has begun."""
        return self._queued(self._fetcher.under_way())

    def enqueue(self, image_id: str) -> None:
        """Queue an image. Raises ImageExistsError when it is cached or being fetched."""
        self._fetcher.image_wanted(image_id)
        self._store.enqueue(image_id)
        self._fetcher.wake()

    def enqueue_unless_there(self, image_id: str) -> None:
        """Queue an image, or do nothing where it is queued, cached or being fetched: for lists."""
        with contextlib.suppress(ImageExistsError):
            self.enqueue(image_id)

    def unqueue(self, image_id: str) -> None:
        """Take an image out of the queue. Raises ImageNotFoundError."""
        if not self._store.unqueue(image_id):
            raise ImageNotFoundError(f"image {image_id!r} is not queued")

    def queue_record(self, image_id: str) -> ImageRecord | None:
        """A queued image's record; its *last_modified* is when it was queued. One that cannot be
        had now tells what it waits for, why, and until when."""
        since = self._store.queued_since(image_id)
        if since is None or self._fetcher.is_under_way(image_id):
            return None
        waiting = self._fetcher.waiting(image_id)
        return ImageRecord(
            image_id,
            0,
            last_modified=since,
            state=State.QUEUED,
            source=self._fetcher.source_url,
            priority=self._store.priority(image_id),
            error=waiting.error if waiting else None,
            waiting=waiting.waits_for if waiting else None,
            next_try=self._store.now() + waiting.seconds if waiting else None,
        )

    def set_priority(self, image_id: str, text: str) -> None:
        """Have a queued image fetched before those of lower priority. Raises InvalidValueError."""
        if not re.fullmatch(r"[+-]?[0-9]{1,6}", text):
            raise InvalidValueError(f"{text[:40]!r} is not a priority, a whole number")
        self._store.set_priority(image_id, int(text))

    # Fetches

    def incomplete(self) -> list[str]:
        """The images being fetched here, and those that another process is caching."""
        return self._incomplete(self._fetcher.under_way())

    def cancel(self, image_id: str) -> None:
        """Cancel a fetch; it has ended when this returns. Raises ImageNotFoundError."""
        self._fetcher.cancel(image_id)

    def incomplete_record(self, image_id: str) -> ImageRecord | None:
        """The record of an image being fetched, with its progress in bytes; after a failure that is
        being tried again, with its reason."""
        failure = self._store.failure(image_id)
        error = failure.error if failure else None
        progress = self._fetcher.progress(image_id)
        if progress is not None:
            return ImageRecord(
                image_id,
                progress.size,
                hits=progress.opens,
                state=State.INCOMPLETE,
                source=progress.source,
                checksum=str(progress.digest) if progress.digest else None,
                progress=progress.arrived,
                error=progress.waiting or error,
            )
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
        """The images that could not be had, without those that are about to be tried again."""
        # In this order: what has just failed is under way, or queued, until that is written down.
        failed = self._store.failed_ids()
        under_way, is_queued = self._fetcher.under_way(), self.quick.is_queued
        return [name for name in failed if name not in under_way and not is_queued(name)]

    def forget_failure(self, image_id: str) -> None:
        """Forget a failure and its bytes. Raises ImageNotFoundError, also while it is about to be
        tried again."""
        if self._is_wanted(image_id) or not self._store.forget_failure(image_id):
            raise ImageNotFoundError(f"image {image_id!r} is not invalid")
        self._fetcher.forget_rejected(image_id)

    def invalid_record(self, image_id: str) -> ImageRecord | None:
        """The record of a failure, with its reason."""
        failure = self._store.failure(image_id)
        if failure is None or self._is_wanted(image_id):
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

    def cached_record(self, image_id: str) -> ImageRecord | None:
        """The record of a cached image."""
        entry = self._hits.shown(lambda: self._store.get(image_id), wait=True)
        return cached_record(entry) if entry else None

    def evict(self, image_id: str) -> None:
        """Evict a cached image. Raises ImageNotFoundError, ImageBusyError where it is pinned."""
        self._store.evict(image_id)

    def pinned(self) -> list[str]:
        """The pinned images, and those that will be when they are cached."""
        pinned = {entry.image_id for entry in self._store.pinned()}
        return sorted(pinned.union(self._store.to_be_pinned()))

    def pinned_record(self, image_id: str) -> ImageRecord | None:
        """The record of a pinned image, or of one that will be: queued, incomplete or invalid, or
        of size 0 and none of these."""
        entry = self._hits.shown(lambda: self._store.get(image_id), wait=True)
        if entry is not None and entry.pinned:
            return cached_record(entry)
        if not self._store.is_to_be_pinned(image_id):
            return None
        record = (
            self.incomplete_record(image_id)
            or self.queue_record(image_id)
            or self.invalid_record(image_id)
            or ImageRecord(image_id, 0, state=State.ABSENT)
        )
        return replace(record, pinned=True)

    def pin(self, image_id: str) -> None:
        """Pin an image; one that is not cached is queued, and pinned when it is."""
        if not self._store.pin_when_cached(image_id):
            with contextlib.suppress(ImageExistsError):  # it is under way, and in the queue too now
                self._fetcher.image_wanted(image_id)
            self._fetcher.wake()

    def unpin(self, image_id: str) -> None:
        """Unpin an image. Raises ImageNotFoundError where it is not pinned, and will not be."""
        self._store.unpin(image_id)

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
        self._fetcher.forget_rejected()
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
        """Bytes that count against ``max_size``."""
        return self._store.usage().taken

    def status(self) -> dict[str, object]:
        """The document of ``control/status``; sizes in bytes. Waits for no lock on the cache
        directory."""
        under_way = self._fetcher.under_way()
        totals, usage = self._store.totals(), self._store.usage()
        return {
            "size": usage.taken,
            "max_size": usage.limit,
            "min_free": str(self._settings.current.min_free),
            "cached": usage.cached,
            "reserved": usage.reserved,
            "index_size": self._store.index_bytes(),
            "rejected": usage.rejected,
            "held": usage.held,
            "images": totals.images,
            "hits": self._hits.total,
            "misses": self._images.misses,
            "evictions": self._store.quick.evictions,
            "queued": len(self._queued(under_way)),
            "fetching": len(self._incomplete(under_way)),
            "invalid": len(self.invalid()),
            "driver": self._store.driver_name,
            "cache_dir": str(self._store.cache_dir),
            "sources": [
                {"url": url, "healthy": health.healthy, "error": health.error}
                for url, health in self._fetcher.sources()
            ],
            "transport": asdict(self._transport),
            "worker": self._worker.document(),
        }

    # Inside

    def _queued(self, under_way: set[str]) -> list[str]:
        return [image_id for image_id in self._store.queued_ids() if image_id not in under_way]

    def _incomplete(self, under_way: set[str]) -> list[str]:
        return sorted({*under_way, *(name for name, _ in self._store.incomplete())})

    def _is_wanted(self, image_id: str) -> bool:
        """Whether the image is queued or under way, whatever became of it before."""
        return self._fetcher.is_under_way(image_id) or self.quick.is_queued(image_id)


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
