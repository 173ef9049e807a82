"""From a transaction's start to the image's name: how a writer comes to its file and its room, and
how what it has written is published or rejected.

Owns these decisions, each under the directory's lock, and no state; it is the
:class:`~cachefs.cache.transaction.Owner` of every transaction. What must go for the room is
:mod:`cachefs.cache.eviction`'s, the writing itself :mod:`cachefs.cache.transaction`'s."""

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cachefs.cache.checking import Checker
from cachefs.cache.eviction import Eviction
from cachefs.cache.incomplete import drop_partial
from cachefs.cache.layout import Layout, sync_directory
from cachefs.cache.lease import unwritten
from cachefs.cache.lock import DirectoryLock, is_left
from cachefs.cache.partial import Version
from cachefs.cache.transaction import (
    Transaction,
    abandoned_map,
    new_map,
    open_incomplete,
)
from cachefs.cache.trust import is_other_kind, what_stands_at
from cachefs.cache.wanted import Wanted
from cachefs.drivers import Driver, Entry
from cachefs.errors import CacheFSError, ImageBusyError, ImageExistsError
from cachefs.kernel.flocks import is_at

log = logging.getLogger(__name__)

AHEAD_SHARE = 64
"""A writer that does not know its image's size reserves at most this fraction of the free room
ahead, so that all writers together leave most of it to others."""


class Publishing:
    """Starts transactions in one cache directory, and is asked by them; any thread may. *now* is
    the cache's clock."""

    def __init__(
        self,
        layout: Layout,
        driver: Driver,
        lock: DirectoryLock,
        *,
        checker: Checker,
        eviction: Eviction,
        wanted: Wanted,
        now: Callable[[], float],
    ) -> None:
        self._layout = layout
        self._driver = driver
        self._lock = lock
        self._checker = checker
        self._eviction = eviction
        self._wanted = wanted
        self._now = now

    def begin(
        self,
        image_id: str,
        size: int | None,
        version: Version | None,
        *,
        beside: bool,
        although_cached: bool,
    ) -> Transaction:
        """Start a transaction. See :meth:`cachefs.cache.store.Store.begin`."""
        self._checker.settle(image_id)
        ordinary = self._layout.incomplete(image_id), self._layout.map(image_id)
        aside = self._layout.beside(image_id), self._layout.beside_map(image_id)
        with self._lock:
            if self._checker.mend(image_id) is not None and not although_cached:
                raise ImageExistsError(f"image {image_id!r} is cached already")
            if beside and aside[0].exists():  # an earlier worker's, for readers that are still here
                with contextlib.suppress(ImageBusyError):
                    return self._start(*aside, size, version)
            try:
                return self._start(*ordinary, size, version)
            except ImageBusyError:
                if not beside:
                    raise
            except OSError as error:
                if not is_other_kind(error):
                    raise
                log.warning("%s cannot be written, writing beside it: %s", ordinary[0], error)
            return self._start(*aside, size, version)

    def _start(
        self, path: Path, map_path: Path, size: int | None, version: Version | None
    ) -> Transaction:
        if is_left(path):  # what its killed writer may still write goes to a nameless file
            drop_partial(path, map_path)
        earlier = abandoned_map(path, map_path, version) if version else None
        try:
            fd = open_incomplete(path, map_path, keep=earlier is not None)
        except BaseException:
            if earlier is not None:
                earlier.close()
            raise
        if earlier is not None and os.fstat(fd).st_size != earlier.version.size:
            earlier.close()  # its bytes were removed since it was read: this is a new file
            earlier = None
        transaction = Transaction(self, path, fd, size, earlier)
        try:
            transaction.reserve(size or 0)
            if version is not None and earlier is None:
                transaction.partial = new_map(map_path, version)
        except BaseException:
            transaction.abort()
            raise
        return transaction

    # For transactions

    def now(self) -> float:
        """The cache's clock, in seconds since the epoch."""
        return self._now()

    def reserve(self, path: Path, fd: int, size: int, *, ahead: int = 0) -> int:
        """Make room and lengthen an incomplete file to *size* bytes; its length is its reservation.
        Up to *ahead* bytes more are reserved while that evicts nothing and leaves most of the free
        room to others. Returns the new length. Raises NoRoomError, and ImageBusyError where the
        file was taken away.

        INVARIANT: cached, incomplete, invalid and held bytes together never exceed ``max_size``.
        """
        with self._lock:
            if not is_at(fd, path):
                raise _taken_away(path.name)
            wanted = size - os.fstat(fd).st_size
            self._eviction.make_room(path.name, size, wanted)
            if ahead:
                size += max(0, min(ahead, self._eviction.usage(wanted).spare // AHEAD_SHARE))
            os.ftruncate(fd, size)
            return size

    def publish(self, entry: Entry, path: Path, fd: int) -> Entry:
        """Record a synced, verified file and rename it into place. Its owner shares it already, and
        has it open for reading alone.

        Where another writer was faster, its publication stays, and is the answer. Where something
        stands in the image's place that is not the cache's, that stays, too: the image is not
        cached, and the reason is written down."""
        with self._lock:
            other = self._checker.mend(entry.image_id)
            if other is not None:
                if is_at(fd, path):
                    with contextlib.suppress(BlockingIOError), unwritten(fd):
                        path.unlink()
                self._wanted.forget(entry.image_id)
                return other
            if not is_at(fd, path):
                raise _taken_away(path.name)
            target = self._layout.image(entry.image_id)
            obstacle = what_stands_at(target)
            if obstacle is not None:
                return self._give_up(entry, path, obstacle)
            wished = entry.image_id in self._wanted.pins
            try:
                entry = self._name(replace(entry, pinned=True) if wished else entry, path, fd)
            except OSError as error:
                if not is_other_kind(error):  # an immutable file, say
                    raise
                return self._give_up(entry, path, f"cannot be cached: {target}: {error}")
            self._wanted.forget(entry.image_id)
        sync_directory(self._layout.base)
        if wished:
            with self._lock:
                self._wanted.apply_pins()
        return entry

    def _name(self, entry: Entry, path: Path, fd: int) -> Entry:
        """Record the file and give it its image's name; the record. Raises OSError as rename(2),
        and ImageBusyError where another program has opened it for writing: then it has not got the
        name, or has lost it again."""
        target = self._layout.image(entry.image_id)
        try:
            with unwritten(fd) as is_unwritten:
                if os.fstat(fd).st_size != entry.size:
                    raise _taken_away(entry.image_id)
                recorded = self._driver.put(entry, path)
                try:
                    if is_unwritten():
                        path.rename(target)
                        if is_unwritten():
                            return recorded
                        target.rename(path)
                    raise _taken_away(entry.image_id)
                except BaseException:
                    self._driver.remove(entry.image_id)
                    raise
        except BlockingIOError:
            raise _taken_away(entry.image_id) from None

    def reject(
        self,
        path: Path,
        error: CacheFSError,
        source: str | None,
        version: str | None = None,
        *,
        wanted: bool = False,
    ) -> None:
        """Move bytes that failed verification to ``invalid/``, with the reason."""
        with self._lock:
            self._wanted.reject(path, error, source, version, wanted=wanted)

    def _give_up(self, entry: Entry, path: Path, why: str) -> Entry:
        """Drop a verified file that cannot get its name."""
        path.unlink()
        self._wanted.fail(entry.image_id, CacheFSError(why), source=entry.source)
        log.warning("image %r %s", entry.image_id, why)
        return entry


def _taken_away(image_id: str) -> ImageBusyError:
    return ImageBusyError(f"image {image_id!r} was taken away while it was written")
