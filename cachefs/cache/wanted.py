"""What is wanted of the cache and is not in it: queued, to be pinned, or failed, with the reason.

Owns what the three mean to each other, as that a failed image leaves the queue; each keeps its own
files (:mod:`cachefs.cache.queue`, :mod:`cachefs.cache.pins`). Does not ask whether an image is
cached: that is the caller's, who holds the directory's lock where a method says so."""

import logging
from collections.abc import Callable
from pathlib import Path

from cachefs.cache.layout import Layout
from cachefs.cache.pins import Pins
from cachefs.cache.queue import Failure, Failures, Queue
from cachefs.drivers import Driver
from cachefs.errors import CacheFSError, ImageNotFoundError

log = logging.getLogger(__name__)


class Wanted:
    """The queue, the pins to be and the failures of one cache directory. *now* is the cache's
    clock."""

    def __init__(self, layout: Layout, driver: Driver, now: Callable[[], float]) -> None:
        self.queue = Queue(layout)
        self.failures = Failures(layout)
        self.pins = Pins(layout)
        self._layout = layout
        self._driver = driver
        self._now = now

    # Queue

    def enqueue(self, image_id: str) -> bool:
        """Queue an image; False where it is queued already. An earlier failure is forgotten. The
        caller holds the directory's lock, so that nobody publishes it meanwhile."""
        self.failures.discard(image_id)
        return self.queue.add(image_id)

    def set_priority(self, image_id: str, priority: int) -> bool:
        """Set the priority of a queued image; durable. False, and nothing is done, where it is not
        queued."""
        if image_id not in self.queue:
            return False
        self.queue.set_priority(image_id, priority)
        return True

    def forget(self, image_id: str) -> None:
        """Have the image neither queued nor failed, for it is cached. What cannot be removed is
        logged: it harms nothing that is cached."""
        for discard in (self.queue.discard, self.failures.discard):
            try:
                discard(image_id)
            except OSError as error:
                log.error("what was queued or failed as %r stays: %s", image_id, error)

    # Pins

    def apply_pins(self) -> None:
        """Pin what was to be pinned and is cached by now, by a writer that is gone or that knows
        nothing of pins. The caller holds the directory's lock."""
        for image_id in self.pins.ids():
            if self._driver.set_pinned(image_id, True):
                self.pins.discard(image_id)

    def unpin(self, image_id: str) -> None:
        """Pin an image no longer, nor when it is cached. The caller holds the directory's lock.
        Raises ImageNotFoundError where neither was so."""
        wished = self.pins.discard(image_id)
        entry = self._driver.get(image_id)
        if entry is not None and entry.pinned:
            self._driver.set_pinned(image_id, False)
        elif not wished:
            raise ImageNotFoundError(f"image {image_id!r} is not pinned")

    # Failures

    def fail(
        self,
        image_id: str,
        error: BaseException,
        *,
        source: str | None = None,
        size: int = 0,
        version: str | None = None,
        wanted: bool = False,
    ) -> None:
        """Remember that the image could not be had, and why; it leaves the queue, but where it is
        *wanted* still. *version* is the caller's name for the bytes that were wrong."""
        reason = str(error) or type(error).__name__
        self.failures.add(
            Failure(image_id, reason, self._now(), size=size, source=source, version=version)
        )
        if not wanted:
            self.queue.discard(image_id)

    def reject(
        self,
        path: Path,
        error: CacheFSError,
        source: str | None,
        version: str | None = None,
        *,
        wanted: bool = False,
    ) -> None:
        """Move bytes that failed verification to ``invalid/``, as :meth:`fail` says. Where the
        reason cannot be written down it is logged: the bytes are a failure by themselves. The
        caller holds the directory's lock."""
        size = path.stat().st_size
        try:
            path.rename(self._layout.invalid(path.name))
        except OSError as trouble:  # a directory there, an immutable file
            log.error("cannot move %s to %s: %s", path, self._layout.invalid_dir, trouble)
            path.unlink()
            size = 0
        try:
            self.fail(path.name, error, source=source, size=size, version=version, wanted=wanted)
        except OSError as trouble:
            log.error("could not write down that image %r has: %s: %s", path.name, error, trouble)

    def clear_failures(self) -> int:
        """Forget all failures and remove their bytes; how many. What cannot be removed is logged.
        The caller holds the directory's lock."""
        count = 0
        for image_id in self.failures.ids():
            try:
                count += self.failures.discard(image_id)
            except OSError as error:
                log.error("cannot remove the invalid image %r: %s", image_id, error)
        return count
