"""The lock of a cache directory comes back, whatever becomes of its file."""

import shutil
from pathlib import Path

import pytest

from cachefs.cache.lock import DirectoryLock


def test_a_lock_whose_directory_was_away_is_a_lock_again(tmp_path: Path) -> None:
    here = tmp_path / "private"
    here.mkdir()
    lock = DirectoryLock(here / "lock")
    with lock:
        shutil.rmtree(here)
    for _ in range(2):
        with pytest.raises(FileNotFoundError), lock:
            pass
    here.mkdir()
    with lock:
        assert (here / "lock").exists()
    lock.close()


def test_a_closed_lock_stays_closed(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "lock")
    lock.close()
    with pytest.raises(OSError, match="closed"), lock:
        pass
