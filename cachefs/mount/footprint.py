"""What a mount makes before it serves, so that one that fails leaves nothing behind.

Owns the list of that: the cache directory with all above it that was missing, what cachefs puts
into an empty one, and an empty log file. INVARIANT: it removes files of our own names only, below a
cache directory that was missing or empty when the mount began, and while the mount owns it; other
directories only where they are empty.
"""

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

_INDEX: Final = ("cache.db", "cache.db-journal", "cache.db-shm", "cache.db-wal")
_DIRECTORIES: Final = ("incomplete", "invalid", "queue")
_PRIVATE: Final = ".cachefs"


class Footprint:
    """What was there before. Make it before anything is made."""

    def __init__(self, cache_dir: Path, log_file: Path | None) -> None:
        self._cache_dir = cache_dir
        self._log_file = log_file if log_file is not None and not _is_there(log_file) else None
        self._missing = [path for path in (cache_dir, *cache_dir.parents) if not _is_there(path)]
        self._was_empty = not _names(cache_dir)

    def remove(self, *, owned: bool) -> None:
        """Take away what has been made since. Unless the cache directory is *owned* by this mount,
        nothing in it is touched. Raises nothing: what cannot be removed stays."""
        if owned and self._was_empty:
            _remove_tree(self._cache_dir / _PRIVATE)
            for name in _INDEX:
                with contextlib.suppress(OSError):
                    (self._cache_dir / name).unlink()
            for name in _DIRECTORIES:
                _remove_directory(self._cache_dir / name)
        for path in self._missing:
            _remove_directory(path)
        if self._log_file is not None:
            with contextlib.suppress(OSError):
                if self._log_file.stat().st_size == 0:
                    self._log_file.unlink()


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _names(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except OSError:
        return []


def _remove_tree(directory: Path) -> None:
    """Remove a directory of ours; links in it are not followed."""
    for name in _names(directory):
        path = directory / name
        with contextlib.suppress(OSError):
            if stat.S_ISDIR(path.lstat().st_mode):
                _remove_tree(path)
            else:
                path.unlink()
    _remove_directory(directory)


def _remove_directory(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()
