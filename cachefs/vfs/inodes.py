"""Inode numbers: which kind of node a number stands for, and the numbers given to names.

A number is 8 bits of :class:`NodeKind` and 56 bits of serial. Within the life of a mount a number
means one thing only, since the kernel's page cache goes by it: a cached image has its driver's
serial, everything else one made of the clock, so that a daemon started again does not repeat an
earlier one's."""

import time
from dataclasses import dataclass
from enum import IntEnum

SERIAL_BITS = 56


class NodeKind(IntEnum):
    """The kinds of nodes, as the top byte of their inode numbers."""

    FIXED = 0
    """The root, the directories and the plain control files; the serial is a small constant."""
    CACHED = 1
    """``images/ID`` of a cached image; the serial is the driver's."""
    LAZY = 2
    """``images/ID`` of an image that is being fetched, or would be if it were opened."""
    HANDLE = 8
    """No nodes: the numbers of open directories, which must not be those of open images."""
    RECORD = 16
    """Files of the first record directory of ``control/``; the next directory has 17, and so on."""


ROOT_INODE = 1
"""FUSE_ROOT_ID of ``linux/fuse.h``."""
IMAGES_INODE = 2
CONTROL_INODE = 3
FIRST_CONTROL_FILE_INODE = 16


def join(kind: int, serial: int) -> int:
    """The inode number of the node *serial* of *kind*."""
    return kind << SERIAL_BITS | serial


def split(inode: int) -> tuple[int, int]:
    """Kind and serial of an inode number."""
    return inode >> SERIAL_BITS, inode & ((1 << SERIAL_BITS) - 1)


class Serials:
    """Numbers never given before, by this process or one before it: microseconds since the epoch,
    or one more than the last (1.8e15 in 2026, of 7.2e16 that fit)."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        """The next number."""
        self._last = max(time.time_ns() // 1000, self._last + 1)
        return self._last


@dataclass(slots=True)
class _Name:
    key: str
    lookups: int = 0


class Names:
    """Serials for names that have none of their own, kept while the kernel knows them (its lookup
    count, see FUSE_FORGET)."""

    def __init__(self, serials: Serials) -> None:
        self._serials = serials
        self._by_serial: dict[int, _Name] = {}
        self._by_key: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._by_serial)

    def serial(self, key: str) -> int:
        """The serial of a name, the same as long as the kernel remembers it."""
        serial = self._by_key.get(key)
        if serial is None:
            serial = self._by_key[key] = self._serials.next()
            self._by_serial[serial] = _Name(key)
        return serial

    def looked_up(self, serial: int) -> None:
        """The kernel holds one reference more."""
        self._by_serial[serial].lookups += 1

    def key(self, serial: int) -> str | None:
        """The name that has this serial, or None."""
        name = self._by_serial.get(serial)
        return name.key if name else None

    def forget(self, serial: int, lookups: int) -> None:
        """The kernel has dropped *lookups* of its references."""
        name = self._by_serial.get(serial)
        if name is None:
            return
        name.lookups -= lookups
        if name.lookups <= 0:
            del self._by_serial[serial]
            del self._by_key[name.key]
