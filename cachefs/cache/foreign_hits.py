"""Hits that another driver keeps in the directory, taken over once.

A cache directory whose hits and order of use were kept by the other driver, ours or Glance's,
would else start as if nothing in it had ever been read, and evict at random. Owns
``.cachefs/driver``, the name of the driver that the directory was last opened with: as long as that
is the one that runs, nothing is read."""

import contextlib
import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from cachefs.cache.layout import Layout
from cachefs.cache.trust import read_trusted
from cachefs.drivers import Driver
from cachefs.drivers.files import is_trusted
from cachefs.drivers.index import SQLITE_ERRORS
from cachefs.errors import CacheFSError

log = logging.getLogger(__name__)

HITS = "user.hits"
"""As ``glance.image_cache.drivers.xattr`` has them, and our driver of that name."""

_Found = Iterator[tuple[str, int, float]]
"""Image, hits, time of the last in seconds since the epoch."""


def take_over_hits(layout: Layout, driver: Driver) -> None:
    """Count for *driver* the hits that the other one has kept, of each image that has none yet.
    What cannot be read or counted is left: it is a statistic."""
    note = layout.private_dir / "driver"
    try:
        if read_trusted(note, 32) == driver.name.encode():
            return
    except OSError:
        pass
    taken = 0
    try:
        reader = _READERS.get(driver.name)
        for image_id, hits, when in reader(layout.base) if reader else ():
            entry = driver.get(image_id)
            if entry is not None and entry.hits == 0:
                driver.hit(image_id, when or entry.last_accessed, hits)
                taken += 1
        layout.write_atomically(note, driver.name.encode())
    except (CacheFSError, OSError, *SQLITE_ERRORS) as error:
        log.warning("cannot take over the hits that another driver keeps: %s", error)
    if taken:
        log.info("took over the hits of %d images, which another driver has kept", taken)


def _of_database(base: Path) -> _Found:
    """What ``cache.db`` says, in Glance's table; ours has it, too."""
    path = base / "cache.db"
    if not path.exists():
        return
    with contextlib.closing(
        sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=1)
    ) as database:
        rows = database.execute("SELECT image_id, hits, last_accessed FROM cached_images")
        for image_id, hits, when in rows.fetchall():
            numbers = type(hits) is int and 0 < hits < 2**62 and isinstance(when, int | float)
            if isinstance(image_id, str) and numbers:
                yield image_id, hits, float(when)


def _of_attributes(base: Path) -> _Found:
    """What stands on the files."""
    with os.scandir(base) as names:
        for item in names:
            with contextlib.suppress(OSError):  # no such attribute, mostly
                status = item.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and is_trusted(status.st_uid):
                    text = os.getxattr(item.path, HITS, follow_symlinks=False)
                    if len(text) <= 18 and text.isdigit() and int(text):
                        yield item.name, int(text), status.st_atime


_READERS: dict[str, Callable[[Path], _Found]] = {"sqlite": _of_attributes, "xattr": _of_database}
"""By the driver that runs: where the other one keeps its hits."""
