"""Keeps the limits in the background: a trio task that asks the cache to prune and to clean.

Reservation alone keeps ``max_size``; the task is for what changes from outside: a lower limit,
other programs filling the disk, partial files left lying. It decides nothing about images."""

import logging
from dataclasses import dataclass

import trio

from cachefs.cache import Store
from cachefs.errors import CacheFSError

log = logging.getLogger(__name__)

PRUNE_EVERY = 5.0
"""Seconds between looks at the limits; a look is two statvfs and a listing of what is
incomplete."""

CLEAN_EVERY = 600.0
"""Seconds between looks for files left behind."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """Images dropped and the bytes they had."""

    files: int
    bytes: int


class Evictor:
    """Prunes and cleans *store*. :meth:`prune` and :meth:`clean` block, for any thread."""

    def __init__(self, store: Store, stall_time: float) -> None:
        self._store = store
        self.stall_time = stall_time
        self.last_pruned: Pruned | None = None

    async def run(self) -> None:
        """Keep the limits until cancelled. What goes wrong is logged, once until it is another
        fault or has passed, and tried again."""
        clean_at = trio.current_time() + CLEAN_EVERY
        known: str | None = None
        while True:
            try:
                await trio.to_thread.run_sync(self.keep_limits)
                if trio.current_time() >= clean_at:
                    clean_at = trio.current_time() + CLEAN_EVERY
                    await trio.to_thread.run_sync(self._store.clean_stalled, self.stall_time)
                known = None
            except (CacheFSError, OSError) as error:
                if str(error) != known:
                    log.error("cannot keep the limits: %s", error)
                known = str(error)
            await trio.sleep(PRUNE_EVERY)

    def prune(self) -> Pruned:
        """Drop what exceeds the limits now; :attr:`last_pruned` from then on."""
        self.last_pruned = pruned = Pruned(*self._store.prune())
        return pruned

    def keep_limits(self) -> None:
        """Drop what exceeds the limits now; :attr:`last_pruned` only if that was anything."""
        pruned = Pruned(*self._store.prune())
        if pruned.files:
            log.info("evicted %d images, %d bytes", pruned.files, pruned.bytes)
            self.last_pruned = pruned

    def clean(self, stall_time: float | None = None) -> tuple[int, int]:
        """Remove failures, and partial files older than *stall_time* seconds: (invalid,
        stalled)."""
        return self._store.clean(self.stall_time if stall_time is None else stall_time)
