"""Which cachefs mounts this machine has, by the kernel's table of mounts."""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from cachefs.errors import MountError
from cachefs.kernel import mountinfo
from cachefs.kernel.mountinfo import MountInfo


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount of ours: where, and the name of its source in the kernel's table."""

    mountpoint: Path
    source: str


def ours(mount: MountInfo) -> Mounted | None:
    """The mount as one of cachefs, or None where it is not: ours has a FUSE type and names cachefs
    as its subtype or source. A bind mount of a part of one is none."""
    named = mount.kind.endswith(".cachefs") or re.match(r"cachefs\b", mount.source) is not None
    if named and mount.root == "/" and re.fullmatch(r"fuse(blk)?(\.cachefs)?", mount.kind):
        return Mounted(mount.mountpoint, mount.source)
    return None


def parse_mountinfo(table: bytes) -> list[Mounted]:
    """The cachefs mounts in *table* (proc(5), "mountinfo"), in the order of mounting."""
    found = map(ours, mountinfo.parse(table))
    return [mounted for mounted in found if mounted is not None]


def mounts() -> list[Mounted]:
    """The cachefs mounts that this process sees."""
    found = map(ours, mountinfo.mounts())
    return [mounted for mounted in found if mounted is not None]


def only_mount(found: list[Mounted]) -> Path:
    """The one mountpoint in *found*; else MountError."""
    if not found:
        raise MountError("no cachefs is mounted here; say where with --mount MOUNTPOINT")
    if len(found) > 1:
        names = ", ".join(str(mounted.mountpoint) for mounted in found)
        raise MountError(f"several are mounted ({names}); say which with --mount MOUNTPOINT")
    return found[0].mountpoint


def check_mount(mountpoint: Path) -> Path:
    """*mountpoint*, seen to have a control tree.

    Raises :class:`~cachefs.errors.MountError` where there is none, or nobody answers.
    """
    try:
        # Not stat, which the kernel may answer from what it remembers, of a dead mount too.
        os.statvfs(mountpoint / "control")
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise MountError(
                f"{mountpoint}: its daemon is gone; take it away with `cachefs umount`"
            ) from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise MountError(f"{mountpoint} is not a cachefs mount") from error
        raise
    return mountpoint


def mounted_at(path: Path) -> Mounted | None:
    """The mount of ours whose mountpoint *path* is, or None."""
    found = mountinfo.find(path)
    return ours(found) if found else None
