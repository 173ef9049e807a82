"""Filesystems of a test's own, whose room nobody else takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .processes import run


@contextmanager
def small_disk(home: Path, mib: int) -> Iterator[Path]:
    """An empty filesystem of *mib* MiB at *home*, which is made."""
    home.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "cachefs-test", str(home))
    try:
        yield home
    finally:
        run("umount", "-l", str(home))
