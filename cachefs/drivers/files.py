"""Which files of a cache directory are images.

Owns that one question, for every driver; reads names and inodes, never contents.
"""

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cachefs.errors import InvalidImageIDError
from cachefs.image import check_image_id

log = logging.getLogger(__name__)

GLANCE_LOCK = "image_cache_db_init"
"""The lock file that oslo.concurrency leaves among the images under Glance's sqlite driver."""

GLANCE_PROBE = "checkme"
"""The file of 3 bytes by which Glance's xattr driver tries attributes at its start; left behind
where that was killed, or there are none (``glance/image_cache/drivers/xattr.py``)."""


def is_trusted(user: int) -> bool:
    """Whether the files of this user ID are believed: root's, and those of who runs this."""
    return user in (0, os.geteuid())


def find_image(cache_dir: Path, name: str) -> os.stat_result | None:
    """The inode of the image file *name*, or None where there is no file or it is not an image.

    An image is a regular file directly in the cache directory whose name can be an ID, and of a
    trusted owner. Glance's lock file is told from an image of that name by being empty, and the
    probe of its start by having 3 bytes at most.
    """
    try:
        check_image_id(name)
    except InvalidImageIDError:
        return None
    return find_checked(cache_dir, name)


def find_checked(cache_dir: Path, image_id: str) -> os.stat_result | None:
    """As :func:`find_image`, for what is known to be an ID; the check costs more than the rest."""
    try:
        found = os.lstat(f"{cache_dir}/{image_id}")
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode) or not is_trusted(found.st_uid):
        return None
    if found.st_size <= _SMALL.get(image_id, -1):
        return None
    return found


def scan_images(cache_dir: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every image's ID and inode, in the order of the directory, which is read once. A file that
    cannot be looked at (a damaged filesystem) is left out, with one warning for all of them. Raises
    OSError where the directory cannot be read."""
    try:
        listing = os.scandir(cache_dir)
    except FileNotFoundError:  # removed under us: it has none
        return
    failures: list[str] = []
    with listing as names:
        for item in names:
            try:
                found = find_image(cache_dir, item.name)
            except OSError as error:
                failures.append(str(error))
                continue
            if found is not None:
                yield item.name, found
    if failures:
        log.warning(
            "files of %s that cannot be looked at, and are left out: %d; %s",
            cache_dir,
            len(failures),
            failures[0],
        )


_SMALL = {GLANCE_LOCK: 0, GLANCE_PROBE: 3}
"""Glance's own files, and how large they are at most."""
