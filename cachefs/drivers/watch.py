"""Noticing which names change in a directory, whichever process changes them.

Owns an inotify instance (``linux/inotify.h``; the standard library has no binding). Knows nothing
of images. A directory's mtime says only that something changed, our own rename included, and in
steps of a clock tick; after it all names would have to be read again. inotify says which names,
exactly, and before the system call that changed them has returned.
"""

import ctypes
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path

_EVENT = struct.Struct("iIII")  # struct inotify_event: wd, mask, cookie, len; then the name
_SELF = 0x400 | 0x800  # DELETE_SELF, MOVE_SELF: of the directory that is watched
_MASK = 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | _SELF
# CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE
_IGNORED = 0x8000  # IN_IGNORED: the directory is watched no more
_OVERFLOW = 0x4000
_BUFFER = 1 << 16

SETTLED_NS = 50_000_000
"""A directory's mtime moves in clock ticks of up to 10 ms: a younger one may hide later changes."""


class DirectoryWatch:
    """Collects the names that change in *directories*, from the moment it is made.

    A directory that was removed or renamed, and made anew, is watched again.

    Where the system has no inotify instance left (``fs.inotify.max_user_instances``, often used up
    on container hosts), the mtimes are compared instead, and any change means that all names may
    have changed. Not thread-safe.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = directories
        self._stamps: list[int] | None = None
        self._gone = False
        self._fd = _inotify(directories)

    def changed(self) -> set[str] | None:
        """The names changed since the last call; None where they are not known, so any may be."""
        return self._changed_mtime() if self._fd is None else self._changed_events(self._fd)

    def close(self) -> None:
        """Stop watching."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _changed_events(self, fd: int) -> set[str] | None:
        if self._gone:
            self._watch_again()
            return None
        names: set[str] = set()
        lost = False
        while True:
            try:
                events = os.read(fd, _BUFFER)
            except BlockingIOError:
                return None if lost else names
            at = 0
            while at < len(events):
                _, mask, _, length = _EVENT.unpack_from(events, at)
                at += _EVENT.size + length
                self._gone = self._gone or bool(mask & (_SELF | _IGNORED))
                lost = lost or self._gone or bool(mask & _OVERFLOW)
                names.add(os.fsdecode(events[at - length : at].rstrip(b"\0")))

    def _watch_again(self) -> None:
        fd = _inotify(self._directories)
        if fd is not None:  # else they are not there yet
            self.close()
            self._fd, self._gone = fd, False

    def _changed_mtime(self) -> set[str] | None:
        now = time.time_ns()
        try:
            stamps = [path.stat().st_mtime_ns for path in self._directories]
        except FileNotFoundError:
            return None
        if stamps == self._stamps:
            return set()
        self._stamps = stamps if max(stamps) < now - SETTLED_NS else None
        return None


def _inotify(directories: Sequence[Path]) -> int | None:
    """A descriptor that reports on *directories*, or None where the system has none to give."""
    libc = ctypes.CDLL(None)
    fd = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        return None
    if any(libc.inotify_add_watch(fd, os.fsencode(path), _MASK) < 0 for path in directories):
        os.close(fd)
        return None
    return fd
