"""What can be said before anything is mounted, each in one clear line; and dead mounts in the
way."""

import errno
import grp
import logging
import os
import stat
from pathlib import Path

from cachefs.errors import InvalidValueError, MountError
from cachefs.kernel import device as fuse_device
from cachefs.kernel import mountinfo, mounting
from cachefs.mount.places import check_places
from cachefs.settings import Settings

log = logging.getLogger(__name__)

_DEAD = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED})
"""What a mount whose daemon is gone answers to stat(2) or statvfs(3)."""


def check(settings: Settings) -> None:
    """Raise MountError or InvalidValueError where mounting cannot succeed; detach a dead mount."""
    if not Path(fuse_device.DEVICE).exists():
        raise MountError("there is no /dev/fuse: load the kernel's fuse module (modprobe fuse)")
    group_id(settings)
    _check_mountpoint(settings.mountpoint)
    check_places(settings)


def group_id(settings: Settings) -> int | None:
    """The group that may write control files, or None. Raises InvalidValueError for an unknown
    one."""
    if settings.control_group is None:
        return None
    if settings.control_group.isdigit():
        return int(settings.control_group)
    try:
        return grp.getgrnam(settings.control_group).gr_gid
    except KeyError:
        raise InvalidValueError(f"there is no group {settings.control_group!r}") from None


def _check_mountpoint(mountpoint: Path) -> None:
    try:
        status = mountpoint.stat()
        if mountinfo.is_mounted(mountpoint):
            # The kernel may answer stat from what it remembers, of a dead mount too; never this.
            os.statvfs(mountpoint)
    except OSError as error:
        if error.errno not in _DEAD:
            raise MountError(f"mountpoint {mountpoint}: {error.strerror}") from error
        log.warning("detaching %s, whose daemon is gone", mountpoint)
        if not mounting.unmount(mountpoint):
            raise MountError(f"cannot detach the dead mount at {mountpoint}") from error
        return _check_mountpoint(mountpoint)
    if not stat.S_ISDIR(status.st_mode):
        raise MountError(f"mountpoint {mountpoint} is not a directory")
    if mountinfo.is_mounted(mountpoint):
        raise MountError(f"something is mounted at {mountpoint} already")
    return None
