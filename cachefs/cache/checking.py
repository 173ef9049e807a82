"""Whether a file is still the image that its record speaks of, and what becomes of it where it is
another by now.

A record says which file it speaks of (:func:`cachefs.drivers.file_id`), which a look at the file's
inode tells. Where they differ, the digest that the record knows decides, and without one the file
is taken for what another program, Glance for one, has put there. Owns that decision. Bytes are read
outside of the directory's lock, and what they were found to be is used under it."""

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from cachefs.cache.layout import Layout
from cachefs.cache.lock import DirectoryLock, open_shared
from cachefs.drivers import Driver, Entry, file_id
from cachefs.drivers.base import size_in
from cachefs.drivers.files import find_image
from cachefs.errors import CacheFSError, ChecksumError, InvalidValueError
from cachefs.image import Digest

log = logging.getLogger(__name__)

BUFFER = 2**20
"""Bytes read at once while a file is checked."""


class Checker:
    """Brings files and records of one cache directory together, image by image. *reject* moves a
    file to ``invalid/`` with the reason and the source it was from; *repin* has an image pinned
    once it is cached again; *gone* hears, under the lock,
    of every record that means no cached image any more."""

    def __init__(
        self,
        layout: Layout,
        driver: Driver,
        lock: DirectoryLock,
        *,
        reject: Callable[[Path, CacheFSError, str | None], None],
        repin: Callable[[str], None],
        gone: Callable[[Entry], None],
    ) -> None:
        self._layout = layout
        self._driver = driver
        self._lock = lock
        self._reject = reject
        self._repin = repin
        self._gone = gone
        self._checking: dict[str, tuple[threading.Lock, list[int]]] = {}
        self._claims = threading.Lock()

    def settle(self, image_id: str) -> Entry | None:
        """The record of a cached image, which speaks of the file that is there; None where there is
        no such image. May read the whole file. Raises OSError where it cannot be read or moved."""
        while True:
            entry, found = self._look(image_id)
            if entry is None and found is None:
                return None
            if entry is not None and entry.file is not None and entry.file == found:
                return entry
            with self._lock:
                entry = self.mend(image_id)
                if entry is None or entry.file == self._look(image_id)[1]:
                    return entry
            with self._alone(image_id):
                now = self._look(image_id)[0]
                if now == entry and now.file == entry.file:  # else another thread has settled it
                    self._check(entry)

    def mend(self, image_id: str) -> Entry | None:
        """As :meth:`settle`, but without a look at the bytes: the record may speak of another file
        still. The caller holds the directory's lock."""
        path, entry = self._layout.image(image_id), self._driver.get(image_id)
        found = find_image(self._layout.base, image_id)
        if found is None:
            if entry is not None:
                log.warning("cached image %r has lost its file", image_id)
                self._driver.remove(image_id)
                self._gone(entry)
            return None
        if entry is None:
            entry = self._driver.adopt(image_id)
            if entry is None:  # immutable, and the xattr driver writes on it
                return None
        now = file_id(found)
        if entry.file == now:
            return entry
        recorded = entry.size if entry.file is None else size_in(entry.file)
        if entry.file is None and recorded == found.st_size:  # Glance's, or from before we said it
            self._driver.identify(entry, now)
            return self._driver.get(image_id)
        if _digest_of(entry) is None:
            log.warning("image %r is another file by now, and is taken as it is", image_id)
            new = Entry(
                image_id,
                found.st_size,
                hits=entry.hits,
                last_accessed=entry.last_accessed,
                last_modified=found.st_mtime,
                pinned=entry.pinned,
                private=entry.private,  # it can only take away
            )
            self._gone(entry)
            return self._driver.put(new, path)
        if recorded != found.st_size:
            self._drop(entry, f"the file has {found.st_size} bytes, its record says {recorded}")
            return None
        return entry

    def _look(self, image_id: str) -> tuple[Entry | None, str | None]:
        """The record, and which file there is."""
        entry = self._driver.get(image_id)
        found = find_image(self._layout.base, image_id)
        return entry, file_id(found) if found is not None else None

    def _check(self, entry: Entry) -> None:
        """Compare the bytes with the digest, and decide under the lock, if the file is still what
        was read."""
        path, expected = self._layout.image(entry.image_id), _digest_of(entry)
        assert expected is not None, "without a digest there is nothing to compare"
        log.info("image %r is another file by now: comparing it with %s", entry.image_id, expected)
        fd = open_shared(path)
        try:
            read = file_id(os.fstat(fd))
            digest = _digest_in(fd, expected.algorithm)
            if file_id(os.fstat(fd)) != read:
                return
        finally:
            os.close(fd)
        with self._lock:
            now, found = self._look(entry.image_id)
            if now is None or now.inode != entry.inode or found != read:
                return
            if digest == expected:
                self._driver.identify(now, read)
            else:
                self._drop(now, f"checksum is {digest}, expected {expected}")

    def _drop(self, entry: Entry, why: str) -> None:
        """What is no image is moved first: a record that it outlives finds no file."""
        log.error("cached image %r is damaged, dropping it: %s", entry.image_id, why)
        error = ChecksumError(f"the cached image {entry.image_id!r} was changed: {why}")
        self._reject(self._layout.image(entry.image_id), error, entry.source)
        if entry.pinned:  # so it will be when its bytes are right again
            self._repin(entry.image_id)
        self._driver.remove(entry.image_id)
        self._gone(entry)

    @contextlib.contextmanager
    def _alone(self, image_id: str) -> Iterator[None]:
        """One thread checks an image at a time; the others wait for what it finds."""
        with self._claims:
            lock, waiting = self._checking.setdefault(image_id, (threading.Lock(), [0]))
            waiting[0] += 1
        try:
            with lock:
                yield
        finally:
            with self._claims:
                waiting[0] -= 1
                if not waiting[0]:
                    del self._checking[image_id]


def _digest_of(entry: Entry) -> Digest | None:
    """The digest that the record knows; None for one that is none, too."""
    try:
        return Digest.parse(entry.checksum) if entry.checksum else None
    except InvalidValueError:
        return None


def _digest_in(fd: int, algorithm: str) -> Digest:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    offset = 0
    while data := os.pread(fd, BUFFER, offset):
        digest.update(data)
        offset += len(data)
    return Digest(algorithm, digest.hexdigest())
