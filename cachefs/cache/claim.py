"""May this directory be a cache? Asked before anything is made in it, for a cache removes files.

Owns the question and the making of the cache's own directories. A directory becomes a cache when it
is empty, has ``.cachefs/``, or is recognisably Glance's; any other only for a caller who says so.
"""

import contextlib
import errno
import logging
import os
import sqlite3
import stat
import time
from pathlib import Path
from urllib.parse import quote

from cachefs.cache.layout import Layout
from cachefs.drivers.files import is_trusted
from cachefs.drivers.index import SQLITE_ERRORS
from cachefs.errors import CacheDirectoryError

log = logging.getLogger(__name__)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_NOTHING = frozenset({"lost+found"})
"""What a new filesystem has, which is empty nevertheless (mke2fs(8))."""


def claim(layout: Layout, *, adopt: bool = False) -> None:
    """Make the directory of *layout* a cache: all its directories are there after this, and
    ``.cachefs/`` is for its owner alone. Any number of processes may do so at the same time.

    Raises CacheDirectoryError, and has changed nothing, where its files may be anyone's (unless
    *adopt*) or a name that the cache needs stands for something else; OSError as mkdir(2)."""
    layout.base.mkdir(mode=0o750, parents=True, exist_ok=True)
    if not adopt and not _may_be_cache(layout):
        raise CacheDirectoryError(
            f"{layout.base} has files and is no cache: a cache removes files in it; name another"
            " directory, or say --adopt to have its files taken for cached images"
        )
    owner = layout.base.stat()
    if not is_trusted(owner.st_uid):
        log.warning(
            "%s belongs to user %d, whose files in it are no images: run cachefs as that user, or"
            " give the directory with its files to root (chown -R)",
            layout.base,
            owner.st_uid,
        )
    for directory in layout.directories:
        _check(directory, owner)
    # The private one first: what has anything else of ours has it, so a second process that starts
    # at the same time finds an empty directory or a cache.
    for directory in layout.directories:
        _make(directory, owner, private=layout.private_dir in (directory, *directory.parents))


def _may_be_cache(layout: Layout) -> bool:
    names = {each.name for each in layout.base.iterdir()} - _NOTHING
    if not names or _is_directory(layout.private_dir):
        return True
    glance = (layout.incomplete_dir, layout.invalid_dir, layout.queue_dir)
    return all(_is_directory(each) for each in glance) or _is_index(layout.base / "cache.db")


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _is_index(path: Path) -> bool:
    """Whether it is a database with Glance's table. Read as it stands: nothing is made beside
    it (``immutable``, https://sqlite.org/uri.html)."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1", uri=True)
        ) as database:
            found = database.execute(
                "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'cached_images'"
            ).fetchone()
    except (OSError, *SQLITE_ERRORS):
        return False
    return found is not None


def _check(directory: Path, owner: os.stat_result) -> None:
    """Raise CacheDirectoryError where something else than a directory of ours stands there."""
    try:
        status = directory.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no directory"
        raise CacheDirectoryError(f"{directory} is {kind}: remove it, the cache needs the name")
    if not is_trusted(status.st_uid) and status.st_uid != owner.st_uid:
        raise CacheDirectoryError(
            f"{directory} belongs to user {status.st_uid}, who is neither root nor the owner of the"
            " cache directory"
        )


def _set_aside_other(directory: Path, private: Path) -> None:
    """What stands in ``.cachefs/`` where a directory of ours is to be is not a user's: it is given
    another name. (A link is refused instead: nothing good has put it there.)"""
    try:
        status = directory.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISLNK(status.st_mode):
        name = f"{directory.name}.{time.time_ns()}"
        directory.rename(private / name)
        log.warning("set aside %s as %s: it is no directory", directory, name)


def _make(directory: Path, owner: os.stat_result, *, private: bool) -> None:
    """Make it, if it is missing, and give it owner and mode."""
    made = True
    try:
        directory.mkdir(mode=0o700 if private else 0o750)
    except FileExistsError:
        made = False
    if not made and not private:
        return
    try:
        fd = os.open(directory, _DIRECTORY)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise CacheDirectoryError(f"{directory} is no directory any more") from error
        raise
    try:
        status = os.fstat(fd)
        if os.geteuid() == 0 and (status.st_uid, status.st_gid) != (owner.st_uid, owner.st_gid):
            os.fchown(fd, owner.st_uid, owner.st_gid)
        if private and status.st_mode & 0o7777 != 0o700 and os.geteuid() in (0, status.st_uid):
            os.fchmod(fd, 0o700)  # 0750 until version 0.1
    finally:
        os.close(fd)
