"""Locks by flock(2) on files that have a name, where the wait has an end.

Such a lock is had only while the name still leads to the locked file: another process may have put
a new file there, and locked that. Owns the asking; what a file guards is its users'."""

import fcntl
import os
import time
from pathlib import Path
from typing import Final

_POLL: Final = 0.01  # seconds


def is_at(fd: int, path: Path) -> bool:
    """Whether *path* names the open file, itself and not by a link."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def lock_until(fd: int, until: float) -> bool:
    """Lock the file alone; False where another description has it still at *until*
    (:func:`time.monotonic`). Raises OSError as flock(2)."""
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_POLL)
        else:
            return True
