"""What was shown of control files a moment ago, for the next worker of a mount.

A text is read in pieces, of which the last is empty, and its reader may get them from two workers:
what the second would show is another text, and both together were none. Owns a file in memory,
which outlives a worker, with a slot for each of the last texts. Knows nothing of what they say."""

import mmap
import os
import struct
from typing import Final

from cachefs.errors import StaleError

SLOTS: Final = 64
"""Texts that are kept: more than are being read at the moment when a worker is replaced."""

SLOT_BYTES: Final = 16 * 1024
"""Of each. Of a longer text its length is kept: most readers have all of it in their first piece,
and only ask whether that was all."""

_HEAD = struct.Struct("=QQ")  # handle, bytes of the text
_ROOM: Final = SLOT_BYTES - _HEAD.size


def create() -> int:
    """An empty file of slots; its descriptor, close-on-exec."""
    fd = os.memfd_create("shown", os.MFD_CLOEXEC)
    os.ftruncate(fd, SLOTS * SLOT_BYTES)
    return fd


class Shown:
    """The slots of the file *fd*, which stays the caller's; -1 keeps nothing. For one thread of one
    process at a time."""

    def __init__(self, fd: int = -1) -> None:
        self._slots = mmap.mmap(fd, SLOTS * SLOT_BYTES) if fd >= 0 else None

    def keep(self, handle: int, text: bytes) -> None:
        """*text* is what is read under *handle* from now on."""
        if self._slots is None or not handle:
            return
        at = self._at(handle)
        # INVARIANT: a slot that says whose it is has the whole text: that is written last.
        _HEAD.pack_into(self._slots, at, 0, 0)
        if len(text) <= _ROOM:
            self._slots[at + _HEAD.size : at + _HEAD.size + len(text)] = text
        _HEAD.pack_into(self._slots, at, handle, len(text))

    def kept(self, handle: int, offset: int) -> bytes | None:
        """The text that is read under *handle*, for one who reads on at *offset*; None where nobody
        knows. Raises StaleError where it is too long to have been kept, and not at its end."""
        if self._slots is None or not handle:
            return None
        at = self._at(handle)
        found, length = _HEAD.unpack_from(self._slots, at)
        if found != handle:
            return None
        if length <= _ROOM:
            return self._slots[at + _HEAD.size : at + _HEAD.size + length]
        if offset >= length:
            return b""
        raise StaleError("this text was begun through an earlier daemon: read it again")

    def _at(self, handle: int) -> int:
        return (handle // 2**16 + handle) % SLOTS * SLOT_BYTES
