"""The directory that is ours alone within a cache directory: ``.cachefs``, 0700, and whose the
cache directory is. Owns its mode and owner; what is kept in it is its users' business."""

import contextlib
import errno
import os
import stat
from pathlib import Path

NAME = ".cachefs"


def private_dir(cache_dir: Path) -> Path:
    """``.cachefs``, made if it is missing, and closed to others if it is not. Raises OSError where
    something else stands there."""
    path = cache_dir / NAME
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        give_to_owner(path, cache_dir)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "is no directory", str(path))
    if stat.S_IMODE(found.st_mode) & 0o077:
        with contextlib.suppress(PermissionError):
            path.chmod(0o700)
    return path


def give_to_owner(path: Path, cache_dir: Path) -> None:
    """Give what we have made to the owner of the cache directory, where we may: a Glance that is
    another user must get at the index."""
    if os.geteuid() == 0:
        owner = cache_dir.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
