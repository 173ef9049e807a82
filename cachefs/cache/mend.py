"""What a crash, or another program, has left behind in a cache directory, mended at start.

Knows every state that :mod:`cachefs.cache.transaction` and eviction can be cut off in. The caller
holds the directory's lock, so that what looks unfinished is nobody's work."""

import logging
import time

from cachefs.cache.layout import Layout, files_in
from cachefs.cache.lock import is_held
from cachefs.cache.queue import Failures, Queue
from cachefs.drivers import Driver

log = logging.getLogger(__name__)

SCRATCH_AGE = 60.0
"""Seconds after which a scratch file is nobody's: they are written in one go, outside the lock."""


def reconcile(layout: Layout, driver: Driver, queue: Queue, failures: Failures) -> None:
    """Bring files, index, maps, queue and failures together."""
    adopted, dropped = driver.reconcile()
    if adopted or dropped:
        log.info("adopted %d images without a record, dropped %d records", adopted, dropped)
    _mend_incomplete(layout)
    for name, status in list(files_in(layout.scratch_dir)):
        if status.st_mtime < time.time() - SCRATCH_AGE:
            (layout.scratch_dir / name).unlink(missing_ok=True)
    for image_id in queue.ids():
        if driver.get(image_id) is not None:
            queue.discard(image_id)
    for image_id in failures.ids():
        if driver.get(image_id) is not None:
            failures.discard(image_id)


def _mend_incomplete(layout: Layout) -> None:
    """Keep what has a map to be gone on with, remove the rest. What cannot be removed counts on,
    and is tried again when room is needed."""
    maps = {name for name, _ in files_in(layout.maps_dir)}
    partial = {name for name, _ in files_in(layout.incomplete_dir)}
    for name in partial - maps:
        path = layout.incomplete(name)
        if is_held(path):
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.error("cannot remove %s: %s", path, error)
        else:
            log.info("removed %r, left half written by a writer that is gone", name)
    for name in maps - partial:
        layout.map(name).unlink(missing_ok=True)
