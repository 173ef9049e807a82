"""What is mounted where, by the kernel's own table: ``/proc/self/mountinfo`` (proc(5)).

Owns the parser and how a path is found in the table. Asks the table only: looking at a mountpoint
itself would wait for a daemon that hangs.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOUNTINFO: Final = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class MountInfo:
    """One row: *device* is ``MAJOR:MINOR``, *root* the part of the filesystem that is mounted
    (``/`` is all of it), *kind* its type, *source* what was mounted; *mount_id* is what fdinfo
    calls ``mnt_id``, *options* are the filesystem's."""

    device: str
    root: str
    mountpoint: Path
    kind: str
    source: str
    mount_id: int = 0
    options: str = ""

    @property
    def connection(self) -> int:
        """The number of a FUSE mount's connection in ``/sys/fs/fuse/connections``."""
        return int(self.device.partition(":")[2])

    @property
    def owner(self) -> int | None:
        """The user who made a FUSE mount, by the kernel's own word (``user_id``, fuse.rst); None
        for another filesystem."""
        found = re.search(r"(?:^|,)user_id=(\d+)(?:,|$)", self.options)
        return int(found[1]) if found else None


def parse(table: bytes) -> list[MountInfo]:
    """The mounts in *table* in the order of mounting, without those that a later mount on the same
    mountpoint hides."""
    found: dict[bytes, MountInfo] = {}
    for line in table.splitlines():
        before, separator, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if not separator or len(fields) < 6 or len(rest) < 2:
            continue
        device, root, mountpoint = (_unescape(field) for field in fields[2:5])
        found.pop(mountpoint.encode(errors="surrogateescape"), None)
        found[mountpoint.encode(errors="surrogateescape")] = MountInfo(
            device,
            root,
            Path(mountpoint),
            _unescape(rest[0]),
            _unescape(rest[1]),
            int(fields[0]) if fields[0].isdigit() else 0,
            _unescape(rest[2]) if len(rest) > 2 else "",
        )
    return list(found.values())


def mounts() -> list[MountInfo]:
    """The mounts that this process sees."""
    return parse(MOUNTINFO.read_bytes())


def find(path: str | os.PathLike[str], among: list[MountInfo] | None = None) -> MountInfo | None:
    """What is mounted last at *path*, by whichever symbolic links it is named, or None; *among*
    the mounts given, else all. *path* itself is looked at only where its directory does not tell:
    a daemon may hang below it."""
    by_path = {mount.mountpoint: mount for mount in (mounts() if among is None else among)}
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute() keeps `..`
    return (
        by_path.get(absolute)
        or by_path.get(absolute.parent.resolve() / absolute.name)
        or by_path.get(absolute.resolve())
    )


def is_mounted(path: str | os.PathLike[str]) -> bool:
    """Whether something is mounted there."""
    return find(path) is not None


def mount_device(path: str | os.PathLike[str]) -> str | None:
    """``MAJOR:MINOR`` of what is mounted there last, or None."""
    found = find(path)
    return found.device if found else None


def _unescape(field: bytes) -> str:
    r"""Undo the kernel's ``\040`` (space, tab, newline, backslash, hash)."""
    plain = re.sub(rb"\\([0-3][0-7]{2})", lambda match: bytes([int(match[1], 8)]), field)
    return os.fsdecode(plain)
