"""What a crash, or another program, has left behind in a cache directory, mended at start.

Knows every state that :mod:`cachefs.cache.transaction` and eviction can be cut off in. The caller
holds the directory's lock, so that what looks unfinished is nobody's work, but for what
:mod:`cachefs.cache.lease` tells of writers that take no lock."""

import logging
import time
from pathlib import Path

from cachefs.cache.incomplete import is_anybodys
from cachefs.cache.layout import Layout, files_in
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
    _mend_incomplete(layout, driver)
    for name, status in list(files_in(layout.scratch_dir)):
        if status.st_mtime < time.time() - SCRATCH_AGE:
            _remove(layout.scratch_dir / name)
    for wanted in (queue, failures):
        for image_id in wanted.ids():
            if driver.get(image_id) is not None:
                _discard(wanted, image_id)


def _discard(wanted: Queue | Failures, image_id: str) -> None:
    try:
        wanted.discard(image_id)
    except OSError as error:
        log.error("what was queued or failed as %r stays: %s", image_id, error)


def _mend_incomplete(layout: Layout, driver: Driver) -> None:
    """Keep what has a map to be gone on with, remove the rest: also what nobody wants any more,
    since another writer has cached the image, and no reader has it open. What cannot be removed
    counts on, and is tried again when room is needed."""
    maps = {name for name, _ in files_in(layout.maps_dir)}
    partial = dict(files_in(layout.incomplete_dir))
    for name, status in partial.items():
        if name not in maps or (status.st_nlink == 1 and driver.get(name) is not None):
            _remove_abandoned(layout.incomplete(name))
    partial = dict(files_in(layout.incomplete_dir))
    for name in maps - partial.keys():
        _remove(layout.map(name))
    for name, status in list(files_in(layout.beside_dir)):
        if status.st_nlink == 1:  # else a reader's, who is to read on through the next worker
            _remove_abandoned(layout.beside(name))
    beside = {name for name, _ in files_in(layout.beside_dir)}
    for name in {name for name, _ in files_in(layout.beside_maps_dir)} - beside:
        _remove(layout.beside_map(name))


def _remove_abandoned(path: Path) -> None:
    """Remove the file unless it is anybody's still."""
    try:
        if is_anybodys(path):
            return
    except OSError as error:  # another user's, say: not ours to judge
        log.warning("cannot tell whether %s is being written: %s", path, error)
        return
    if _remove(path):
        log.info("removed %s, left half written by a writer that is gone", path)


def _remove(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.error("cannot remove %s: %s", path, error)
        return False
    return True
