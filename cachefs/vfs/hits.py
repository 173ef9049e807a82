"""Hits of cached images: counted when an image is opened, written a moment after the answer.

Writing one costs the index a transaction, for which neither the reader that opens need wait nor the
next one: after a write the next waits for :data:`PAUSE`, and those of the same image are one. The
event loop writes, and never waits for a lock in the index: where that is locked, or its log too
long because another program reads, or the disk full, hits stay here, and are tried again with
growing pauses. What
shows a record shows those that wait, too (:meth:`Hits.shown`), so that a reader finds its own open
counted. A worker that is killed loses those of its last moment."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import trio

from cachefs.cache import QuickStore
from cachefs.drivers import Entry
from cachefs.errors import CacheFSError, IndexBusyError, NoRoomError

log = logging.getLogger(__name__)

PAUSE = 0.002
"""Seconds between two writes, in which hits are gathered: what a ``kill -9`` costs, at most."""

DELAY = 0.0005
"""Seconds between an open and the write of its hit: the reader that is woken by the answer may have
to wait for this processor."""

MAX_PAUSE = 1.0
"""Seconds between two tries at an index that is locked, at most."""

TIDY_PAUSE = 0.2
"""Seconds between two tries to shorten the index's log, which another program's reader may keep
from that."""

COMPLAIN_EVERY = 60.0
"""Seconds between two lines in the log about hits that are lost."""

AT_ONCE = 64
"""Hits that are written in one go; the rest waits for another turn of the event loop."""


@dataclass(slots=True)
class _Pending:
    """Uses of an image that are not written: how many, and when the last was, in seconds."""

    count: int
    when: float


class Hits:
    """The hits of one worker; *total* since its start. :meth:`count` is for the event loop,
    :meth:`add` too, :meth:`write` for any thread."""

    def __init__(self, store: QuickStore) -> None:
        self._store = store
        self._pending: dict[str, _Pending] = {}
        self._adding = threading.Lock()  # never held while anything is written
        self._writing = threading.Lock()
        self._counted = trio.Event()
        self._complained = float("-inf")
        self.total = 0
        store.gather_hits(self.add)

    def count(self, image_id: str) -> None:
        """An image has been opened."""
        self.total += 1
        self.add(image_id)

    def add(self, image_id: str) -> None:
        """Have a use of an image written with the next."""
        self._add(image_id, 1, self._store.now())
        self._counted.set()

    def closed(self, image_id: str) -> None:
        """An image has been closed for the last time: a use of it, and no hit."""
        self._add(image_id, 0, self._store.now())
        self._counted.set()

    def shown(self, read: Callable[[], Entry | None], *, wait: bool) -> Entry | None:
        """The record that *read* reads, with the uses that are not written yet. Raises
        IndexBusyError where *wait* is False and a thread is just writing."""
        if not self._writing.acquire(blocking=wait):
            raise IndexBusyError("hits are being written")
        try:
            entry = read()
            with self._adding:
                pending = self._pending.get(entry.image_id) if entry is not None else None
        finally:
            self._writing.release()
        if entry is None or pending is None:
            return entry
        accessed = max(entry.last_accessed, pending.when)
        return replace(entry, hits=entry.hits + pending.count, last_accessed=accessed)

    def write(self) -> None:
        """Write what is counted so far, in a thread, and wait for the index as long as that does:
        raises IndexBusyError then, with nothing lost."""
        with self._writing:
            self._write(self._store.waiting.hit)

    def write_if_free(self) -> None:
        """As :meth:`write`, for a thread that is about to evict; where the index stays locked, hits
        stay here."""
        with suppress(IndexBusyError):
            self.write()

    async def run(self) -> None:
        """Write until cancelled, and once more then. In the event loop: a thread costs the next
        open more, which waits for the interpreter with it while an image is fetched."""
        pause = PAUSE
        tidying = trio.current_time()
        try:
            while True:
                await self._counted.wait()
                await trio.sleep(DELAY)
                self._counted = trio.Event()
                if self._store.is_untidy and trio.current_time() >= tidying:
                    # Nothing is written meanwhile, so that the log can start over.
                    await trio.to_thread.run_sync(self._store.waiting.tidy)
                    tidying = trio.current_time() + TIDY_PAUSE
                pause = PAUSE if self._write_at_once() else min(2 * pause, MAX_PAUSE)
                if self._pending:
                    self._counted.set()
                await trio.sleep(pause - DELAY)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._write_last)

    # Inside

    def _add(self, image_id: str, count: int, when: float) -> None:
        with self._adding:
            pending = self._pending.get(image_id)
            if pending is None:
                self._pending[image_id] = _Pending(count, when)
            else:
                pending.count += count
                pending.when = max(pending.when, when)

    def _write_at_once(self) -> bool:
        """Write some, in the event loop; False where the index is locked."""
        if not self._writing.acquire(blocking=False):
            return False
        try:
            self._write(self._store.write_hits, AT_ONCE)
        except IndexBusyError:
            return False
        finally:
            self._writing.release()
        return True

    def _write(self, hit: Callable[[str, float, int], None], most: int | None = None) -> None:
        """Write them by *hit*. What that refuses stays."""
        for image_id in list(self._pending)[:most]:
            with self._adding:
                pending = self._pending.pop(image_id)
            try:
                hit(image_id, pending.when, pending.count)
            except (IndexBusyError, NoRoomError) as error:
                self._add(image_id, pending.count, pending.when)
                raise IndexBusyError(str(error)) from error
            except (CacheFSError, OSError) as error:
                self._complain(image_id, error)

    def _complain(self, image_id: str, error: Exception) -> None:
        """Say that hits are lost, and not again for a while: there may be thousands a second."""
        now = time.monotonic()
        if now - self._complained >= COMPLAIN_EVERY:
            self._complained = now
            log.warning("could not count a hit of image %r: %s", image_id, error)

    def _write_last(self) -> None:
        try:
            self.write()
        except IndexBusyError as error:
            lost = sum(pending.count for pending in self._pending.values())
            log.warning("%d hits are lost: %s", lost, error)
