"""What a cache directory takes on the disk besides what counts against ``max_size``: the index and
``.cachefs/``.

``control/status`` shows it, which is asked for often, so the directory is walked once in
:data:`EVERY` seconds at most; the index alone, which grows fastest, is looked at each time. Owns
that measure; decides nothing. Thread-safe, and takes no lock of the cache directory."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from cachefs.cache.layout import Layout
from cachefs.drivers import Driver

EVERY = 10.0
"""Seconds for which a walk's sum is good. In between, a few files of some KiB come and go."""


class Overhead:
    """See the module. *clock* gives seconds that only rise."""

    def __init__(
        self, layout: Layout, driver: Driver, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._layout = layout
        self._driver = driver
        self._clock = clock
        self._lock = threading.Lock()
        self._walked = float("-inf")
        self._private = 0

    def bytes(self) -> int:
        """The room taken, in bytes of the disk; directories themselves are left out."""
        with self._lock:
            if self._clock() - self._walked >= EVERY:
                counted = set(self._driver.files())
                self._private = sum(self._sizes(self._layout.private_dir, counted))
                self._walked = self._clock()
            return self._driver.disk_bytes() + self._private

    def _sizes(self, directory: Path, counted: Container[Path]) -> Iterator[int]:
        """Of every file below the directory, without the index's, which are *counted*, and without
        those that count against ``max_size``: what is written beside another writer, and the links
        to what is open."""
        if directory == self._layout.beside_dir:
            return
        with contextlib.suppress(OSError), os.scandir(directory) as listing:
            for item in listing:
                path = directory / item.name
                if item.is_dir(follow_symlinks=False):
                    yield from self._sizes(path, counted)
                elif path not in counted and not self._is_held(path):
                    with contextlib.suppress(OSError):  # gone meanwhile
                        yield item.stat(follow_symlinks=False).st_blocks * 512

    def _is_held(self, path: Path) -> bool:
        return path.parent == self._layout.held_dir and path.name.isdecimal()
