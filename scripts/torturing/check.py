"""What must hold after every fault: what the cache calls right is right, the accounting is the
disk's, and nothing is left behind.

Knows the layout of a cache directory, which is a contract, and looks at it as a stranger would: by
itself, with none of the cache's own code.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from torturing.content import Image
from torturing.figures import Figures
from torturing.mount import Mount, StartError
from torturing.patience import HangError, until

OWN = ("cache.db", "incomplete", "invalid", "queue", ".cachefs")
"""What begins so at the top of a cache directory is no image."""

GLANCES = {"image_cache_db_init", "checkme"}
"""Nor are these, which Glance leaves there: its lock, and what it tries attributes on."""


def check(
    mount: Mount,
    images: Mapping[str, Image],
    figures: Figures,
    *,
    max_size: int | None = None,
    wait: bool = True,
) -> None:
    """All of it, on a mount that runs or is started; it is stopped after. *wait* for the queue to
    be empty, which some origins never let it be. *max_size* is the limit that held all along."""
    try:
        if mount.process is None:
            mount.start()
        if wait and not mount.settle():
            left = ", ".join(mount.listed("queue") + mount.listed("incomplete"))
            figures.error(f"the queue does not become empty: {left}")
        check_images(mount, images, figures)
        check_status(mount, figures)
    except (HangError, StartError, OSError, ValueError) as error:
        figures.error(f"check: {type(error).__name__}: {error}")
        mount.destroy()
        return
    try:
        mount.stop()
        clear_scratch(mount)
    except (HangError, StartError) as error:
        figures.error(f"check: {error}")
        return
    check_directory(mount.cache_dir, figures, max_size=max_size, driver=mount.combo.driver)


def clear_scratch(mount: Mount) -> None:
    """What a killed process was about to rename goes at a start, but only once it is old enough to
    be no other process's: so it is made old."""
    scratch = mount.cache_dir / ".cachefs" / "scratch"
    left = names(scratch)
    for name in left:
        with contextlib.suppress(OSError):
            os.utime(scratch / name, (0, 0), follow_symlinks=False)
    if left:
        mount.start()
        mount.stop()


def check_images(mount: Mount, images: Mapping[str, Image], figures: Figures) -> None:
    """Every image in ``cached/`` is read through the mount, to the last byte."""
    for name in mount.listed("cached"):
        image = images.get(name)
        if image is None:
            figures.error(f"{name} is cached, and the origin never had it")
            continue
        try:
            data = mount.read(name)
        except FileNotFoundError:
            continue  # evicted meanwhile, which it may be
        except OSError as error:
            figures.error(f"{name} is in cached/, and reading it fails: {error.strerror}")
            continue
        figures.images()
        if data != image.read(0, image.size):
            known = any(
                data == Image(image.seed, name, len(data), version).read(0, len(data))
                for version in range(1, image.version)
            )
            if not known:
                figures.error(f"{name} is in cached/ with wrong bytes: {_differs(data, image)}")
            continue
        check_record(mount, image, figures)


def check_record(mount: Mount, image: Image, figures: Figures) -> None:
    """The record of a cached image says what its bytes are."""
    try:
        record = json.loads(mount.show(f"cached/{image.name}"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        figures.error(f"the record of {image.name} cannot be read: {error}")
        return
    if (record.get("image_id"), record.get("size")) != (image.name, image.size):
        figures.error(f"the record of {image.name} is of another image: {record}")
    text = str(record.get("checksum") or "")
    algorithm, colon, digits = text.rpartition(":")
    try:
        right = not text or digits == image.digest(algorithm if colon else "md5")
    except ValueError:
        right = False
    if not right:
        figures.error(f"the record of {image.name} has a wrong checksum: {text[:100]!r}")


def _differs(data: bytes, image: Image) -> str:
    true = image.read(0, image.size)
    if len(data) != len(true):
        return f"{len(data)} of {len(true)} bytes"
    at = next(i for i, (a, b) in enumerate(zip(data, true, strict=True)) if a != b)
    return f"at {at}" + (", zeros" if not any(data[at : at + 64]) else "")


def check_status(mount: Mount, figures: Figures) -> None:
    """What ``status`` counts is what there is on the disk. Compared until it agrees, for a moment:
    the two are read one after the other."""
    seen: list[str] = []

    def agrees() -> bool:
        status = mount.status()
        there = dict(published(mount.cache_dir))
        size, files = int(status["size"]), sum(there.values())
        seen[:] = [
            f"status: {status['images']} images of {size} bytes; disk: {len(there)}, {files}"
        ]
        return int(status["images"]) == len(there) and size == files

    if not until(agrees, 5):
        figures.error(f"the accounting is not the disk's: {seen[0]}")


def check_directory(
    cache_dir: Path, figures: Figures, *, max_size: int | None, driver: str
) -> None:
    """The directory when no mount runs: the limit, the index, no orphans."""
    there = dict(published(cache_dir))
    if max_size is not None:
        taken = taken_bytes(cache_dir)
        if taken > max_size:
            figures.error(f"{taken} bytes are taken where {max_size} are allowed")
    if driver == "sqlite":
        check_index(cache_dir, there, figures)
    private = cache_dir / ".cachefs"
    incomplete, queued = names(cache_dir / "incomplete"), names(cache_dir / "queue")
    for name in names(private / "maps") - incomplete:
        figures.error(f"an orphan in maps/: {name}")
    for name in names(private / "held"):
        figures.error(f"an orphan in held/: {name}")
    for name in names(private / "scratch"):
        figures.error(f"an orphan in scratch/: {name}")
    for name in names(private / "priorities") - queued:
        figures.error(f"an orphan in priorities/: {name}")
    for name in names(private / "failed") & set(there):
        figures.error(f"an orphan in failed/: {name} is cached")
    for name in incomplete & set(there):
        figures.error(f"{name} is cached, and in incomplete/")


def check_index(cache_dir: Path, there: Mapping[str, int], figures: Figures) -> None:
    """The rows of Glance's table are the files, with their sizes. An index that is gone is made
    anew at the next start, so it is no fault."""
    if not (cache_dir / "cache.db").exists():
        return
    try:
        connection = sqlite3.connect(f"file:{cache_dir}/cache.db?mode=ro", uri=True, timeout=5)
        with contextlib.closing(connection):
            rows = dict(connection.execute("SELECT image_id, size FROM cached_images"))
    except sqlite3.Error as error:
        figures.error(f"the index cannot be read: {error}")
        return
    for name in sorted(set(rows) - set(there)):
        figures.error(f"a row without a file: {name}")
    for name in sorted(set(there) - set(rows)):
        figures.error(f"a file without a row: {name}")
    for name in sorted(set(there) & set(rows)):
        if rows[name] != there[name]:
            figures.error(f"the row of {name} says {rows[name]} bytes, the file {there[name]}")


def published(cache_dir: Path) -> Iterator[tuple[str, int]]:
    """The images at the top, with their sizes."""
    for name, size in files(cache_dir):
        if not name.startswith((".", *OWN)) and name not in GLANCES:
            yield name, size


def taken_bytes(cache_dir: Path) -> int:
    """What counts against the limit: cached, incomplete, invalid, and held bytes, each file
    once."""
    seen: dict[tuple[int, int], int] = {}
    places = [cache_dir, cache_dir / "incomplete", cache_dir / "invalid"]
    for place in [*places, cache_dir / ".cachefs" / "held"]:
        with contextlib.suppress(FileNotFoundError), os.scandir(place) as listing:
            for item in listing:
                own = place == cache_dir and item.name.startswith((".", *OWN))
                with contextlib.suppress(FileNotFoundError):
                    if not own and not item.name.endswith((".json", ".new")):
                        status = item.stat(follow_symlinks=False)
                        if item.is_file(follow_symlinks=False):
                            seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


def files(place: Path) -> Iterator[tuple[str, int]]:
    """Names and sizes of the regular files there; none where the directory is missing."""
    with contextlib.suppress(FileNotFoundError), os.scandir(place) as listing:
        for item in listing:
            with contextlib.suppress(FileNotFoundError):
                if item.is_file(follow_symlinks=False):
                    yield item.name, item.stat(follow_symlinks=False).st_size


def names(place: Path) -> set[str]:
    """What is in a directory; nothing where it is missing."""
    with contextlib.suppress(FileNotFoundError):
        return {entry.name for entry in place.iterdir()}
    return set()
