"""A cache directory to test :mod:`cachefs.cache` in: opened as often, and from as many processes,
as a test likes."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cachefs.cache import ImageCache, Limits, Store
from cachefs.units import Amount

PRELUDE = """
import os, signal, sys, threading, time, random
from pathlib import Path
from support.place import Place, content
place = Place(Path({path!r}), {driver!r})
"""


def content(image_id: str, size: int) -> bytes:
    """The bytes of an image, told from those of every other by its name."""
    pattern = f"{image_id}|".encode()
    return (pattern * (size // len(pattern) + 1))[:size]


class Place:
    """The directory, and which driver it is opened with."""

    def __init__(self, path: Path, driver: str) -> None:
        self.path = path
        self.driver = driver

    def cache(self, max_size: int = 10 * 2**30) -> ImageCache:
        """The library's view, anew."""
        cache = ImageCache(self.path, max_size=max_size, driver=self.driver)
        assert cache.driver_name == self.driver
        return cache

    def store(self, max_size: int = 10 * 2**30, min_free: int = 0) -> Store:
        """The daemon's view, anew; the caller closes it."""
        limits = Limits(Amount(size=max_size), Amount(size=min_free))
        return Store(self.path, limits, driver=self.driver)

    @contextmanager
    def opened(self, max_size: int = 10 * 2**30, min_free: int = 0) -> Iterator[Store]:
        """The daemon's view, for a while."""
        store = self.store(max_size, min_free)
        try:
            yield store
        finally:
            store.close()

    def names(self, directory: str = "") -> list[str]:
        """The files that an operator would take for images, or those in a directory below."""
        own = ("cache.db", ".")
        return sorted(
            item.name
            for item in (self.path / directory).iterdir()
            if item.is_file() and not item.name.startswith(own)
        )

    def bytes_taken(self) -> int:
        """What images, incomplete and invalid files have together, at one moment between the
        decisions of any cache."""
        with (self.path / ".cachefs/lock").open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            return sum(
                (self.path / directory / name).stat().st_size
                for directory in ("", "incomplete", "invalid")
                for name in self.names(directory)
            )

    def start(self, code: str) -> subprocess.Popen[str]:
        """Run *code* in another process, where *place* is this."""
        prelude = PRELUDE.format(path=os.fspath(self.path), driver=self.driver)
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", prelude + code],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str) -> tuple[int, str]:
        """Run *code* as :meth:`start` does to its end: exit status, and what it printed."""
        with self.start(code) as process:
            try:
                output = process.communicate(timeout=30)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return process.returncode, output


def put(cache: ImageCache, image_id: str, size: int) -> bytes:
    """Cache an image in one chunk; its bytes."""
    data = content(image_id, size)
    assert cache.cache_image_iter(image_id, [data])
    return data


def fill(cache: ImageCache, image_ids: str, size: int) -> None:
    """Cache images with names of one letter each."""
    for image_id in image_ids:
        put(cache, image_id, size)


def ids(cache: ImageCache) -> list[object]:
    """The cached images."""
    return [image["image_id"] for image in cache.get_cached_images()]


def read(cache: ImageCache, image_id: str) -> bytes:
    """Read an image, which counts one hit."""
    with cache.open_for_read(image_id) as file:
        return file.read()
