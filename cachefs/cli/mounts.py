"""Which cachefs mounts this machine has, by ``/proc/self/mountinfo``.

Asks the kernel's table only: looking at a mountpoint itself would wait for a daemon that hangs.
"""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from cachefs.errors import MountError

MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount of ours: where, and the name of its source in the kernel's table."""

    mountpoint: Path
    source: str


def parse_mountinfo(table: bytes) -> list[Mounted]:
    """The cachefs mounts in *table* (proc(5), "mountinfo"), in the order of mounting.

    Ours has a FUSE type and names cachefs as its subtype or source. A bind mount of a part of one
    is left out, as is what a later mount on the same mountpoint hides.
    """
    found: dict[bytes, Mounted | None] = {}
    for line in table.splitlines():
        before, separator, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if not separator or len(fields) < 6 or len(rest) < 2:
            continue
        root, mountpoint = fields[3], fields[4]
        kind, source = rest[0], _unescape(rest[1])
        ours = re.fullmatch(rb"fuse(blk)?(\.cachefs)?", kind) is not None and (
            kind.endswith(b".cachefs") or re.match(rb"cachefs\b", source) is not None
        )
        found.pop(mountpoint, None)
        found[mountpoint] = (
            Mounted(Path(os.fsdecode(_unescape(mountpoint))), os.fsdecode(source))
            if ours and root == b"/"
            else None
        )
    return [mounted for mounted in found.values() if mounted is not None]


def mounts() -> list[Mounted]:
    """The cachefs mounts that this process sees."""
    return parse_mountinfo(MOUNTINFO.read_bytes())


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
    """The mount whose mountpoint *path* is, or None; looks at *path* itself only at last."""
    by_path = {mounted.mountpoint: mounted for mounted in mounts()}
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute() keeps `..`
    return (
        by_path.get(absolute)
        or by_path.get(absolute.parent.resolve() / absolute.name)
        or by_path.get(absolute.resolve())
    )


def _unescape(field: bytes) -> bytes:
    r"""Undo the kernel's ``\040`` (space, tab, newline, backslash, hash)."""
    return re.sub(rb"\\([0-3][0-7]{2})", lambda match: bytes([int(match[1], 8)]), field)
