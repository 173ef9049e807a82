"""The incomplete files of a cache directory: which are being written, which were left, and how one
goes together with its map.

Owns the pairs of such a file and its map, in ``incomplete/`` and in ``.cachefs/beside/``. What is
written into them is :mod:`cachefs.cache.transaction`'s, whether they must go is the caller's to
decide, who holds the directory's lock for everything that removes."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from cachefs.cache.layout import Layout, files_in
from cachefs.cache.lease import is_being_written, is_just_closed
from cachefs.cache.trust import remove

log = logging.getLogger(__name__)


def written_images(layout: Layout) -> Iterator[tuple[str, os.stat_result]]:
    """The images being written by any process, with their files' stat."""
    for name, status in files_in(layout.incomplete_dir):
        if is_being_written(layout.incomplete(name)):
            yield name, status


def abandoned_images(layout: Layout) -> list[str]:
    """The images that can be gone on with and that nobody writes, sorted."""
    return sorted(
        name
        for name in [name for name, _ in files_in(layout.maps_dir)]
        if layout.incomplete(name).exists() and not is_being_written(layout.incomplete(name))
    )


def is_anybodys(path: Path) -> bool:
    """Whether an incomplete file is not to be removed to gain room: a process is writing it, or a
    Glance has done so and is about to give its image's name to what stands there."""
    return is_being_written(path) or is_just_closed(path)


def drop_partial(path: Path, map_path: Path) -> None:
    """Remove an incomplete file, its map first: a map never outlives the bytes it speaks of. Raises
    OSError."""
    remove(map_path)
    path.unlink(missing_ok=True)


def drop_stalled(layout: Layout, before: float) -> int:
    """Remove the files that nobody writes and nobody has written since *before*, in seconds since
    the epoch, and maps without bytes; how many files went. What cannot be removed is logged."""
    stalled = 0
    for path, map_path in list(_pairs(layout)):
        try:
            if path.lstat().st_mtime <= before and not is_being_written(path):
                drop_partial(path, map_path)
                stalled += 1
        except FileNotFoundError:
            continue
        except OSError as error:
            log.error("cannot remove %s: %s", path, error)
    _drop_orphaned_maps(layout)
    return stalled


def _pairs(layout: Layout) -> Iterator[tuple[Path, Path]]:
    """Every file that is or was being written, with the place of its map."""
    for name, _ in files_in(layout.incomplete_dir):
        yield layout.incomplete(name), layout.map(name)
    for name, _ in files_in(layout.beside_dir):
        yield layout.beside(name), layout.beside_map(name)


def _drop_orphaned_maps(layout: Layout) -> None:
    """Remove maps whose bytes have gone: the map could not, then."""
    for maps, files in (
        (layout.maps_dir, layout.incomplete_dir),
        (layout.beside_maps_dir, layout.beside_dir),
    ):
        for name, _ in list(files_in(maps)):
            if not (files / name).exists():
                remove(maps / name)
