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


@contextmanager
def overlay(mountpoint: Path) -> Iterator[Path]:
    """A filesystem that is stacked on the one of *mountpoint*, as a container's is; needs root."""
    base = mountpoint.with_name(f"{mountpoint.name}-layers")
    for directory in (mountpoint, *(base / name for name in ("lower", "upper", "work"))):
        directory.mkdir(parents=True)
    layers = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    run("mount", "-t", "overlay", "-o", layers, "overlay", str(mountpoint))
    try:
        yield mountpoint
    finally:
        run("umount", str(mountpoint))


@contextmanager
def without_xattrs(home: Path) -> Iterator[Path]:
    """A filesystem without user attributes at *home*, which is made; needs root."""
    home.mkdir()
    run("mount", "-t", "ramfs", "ramfs", str(home))
    try:
        yield home
    finally:
        run("umount", "-l", str(home))
