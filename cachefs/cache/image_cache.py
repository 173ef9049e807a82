"""``ImageCache``: the cache as a library, method for method that of
``glance.image_cache.ImageCache``.

A thin face over :class:`~cachefs.cache.store.Store`; owns the tee and Glance's shapes (mappings,
MD5, False instead of an exception), and nothing else."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from cachefs.cache.room import Limits
from cachefs.cache.store import Store
from cachefs.cache.transaction import Hasher, Transaction
from cachefs.config import Amount
from cachefs.errors import (
    CacheFSError,
    ChecksumError,
    ImageBusyError,
    ImageExistsError,
    ImageNotFoundError,
)
from cachefs.image import Digest, check_image_id

log = logging.getLogger(__name__)

CHUNK_SIZE = 64 * 2**20
"""Bytes read at once from an image file given to :meth:`ImageCache.cache_image_file`, as in
Glance."""


class ImageCache:
    """An LRU cache of image files in *cache_dir*, never larger than *max_size* bytes.

    *driver* is ``sqlite`` or ``xattr``; where it cannot work, sqlite serves after one warning, and
    :attr:`driver_name` says so. *stall_time* is in seconds. Use it from any number of threads and
    processes, beside a mounted daemon too. Every method raises
    :class:`~cachefs.errors.InvalidImageIDError` for an ID that can be no image's.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str],
        *,
        max_size: int = 10 * 2**30,
        driver: str = "sqlite",
        stall_time: float = 86400,
    ) -> None:
        self._cache_dir = Path(cache_dir)
        self._limits = Limits(Amount(size=max_size))
        self._driver = driver
        self._stall_time = stall_time
        self._store: Store
        self.init_driver()

    def init_driver(self) -> None:
        """Load the driver and make it ready; done by the constructor."""
        self.configure_driver()

    def configure_driver(self) -> None:
        """Make the driver ready, or sqlite instead where it cannot be; done by the constructor.

        Called again, it opens the directory anew, reconciled.
        """
        if hasattr(self, "_store"):
            self._store.close()
        self._store = Store(self._cache_dir, self._limits, driver=self._driver)

    @property
    def driver_name(self) -> str:
        """The driver that runs: ``sqlite`` or ``xattr``."""
        return self._store.driver.name

    # What there is

    def is_cached(self, image_id: str) -> bool:
        """Whether the image is cached, whole and verified."""
        return self._store.get(check_image_id(image_id)) is not None

    def is_queued(self, image_id: str) -> bool:
        """Whether the image waits to be fetched."""
        return check_image_id(image_id) in self._store.queue

    def get_cache_size(self) -> int:
        """The bytes of all cached images together."""
        return self._store.totals().size

    def get_hit_count(self, image_id: str) -> int:
        """How often the image was read; 0 for one that is not cached."""
        entry = self._store.get(check_image_id(image_id))
        return entry.hits if entry else 0

    def get_cached_images(self) -> list[dict[str, object]]:
        """The cached images by ID: ``image_id size hits last_accessed last_modified checksum``."""
        keys = ("image_id", "size", "hits", "last_accessed", "last_modified", "checksum")
        return [
            {key: getattr(entry, key) for key in keys} for entry in self._store.driver.entries()
        ]

    def get_image_size(self, image_id: str) -> int:
        """The bytes of a cached image. Raises ImageNotFoundError."""
        entry = self._store.get(check_image_id(image_id))
        if entry is None:
            raise ImageNotFoundError(f"image {image_id!r} is not cached")
        return entry.size

    def get_queued_images(self) -> list[str]:
        """The queued IDs, in order of queueing."""
        return self._store.queue.ids()

    # Removing

    def delete_all_cached_images(self) -> int:
        """Remove all cached images, pinned ones too; how many went."""
        return sum(self._deleted(entry.image_id) for entry in list(self._store.driver.entries()))

    def delete_cached_image(self, image_id: str) -> None:
        """Remove a cached image, pinned or not; nothing happens where it is not cached."""
        self._deleted(check_image_id(image_id))

    def delete_all_queued_images(self) -> int:
        """Empty the queue; how many images were in it."""
        return sum(self._store.queue.discard(image_id) for image_id in self._store.queue.ids())

    def delete_queued_image(self, image_id: str) -> None:
        """Take an image out of the queue; nothing happens where it is not in it."""
        self._store.queue.discard(check_image_id(image_id))

    def prune(self) -> tuple[int, int]:
        """Evict the least recently used images until ``max_size`` holds: (files, bytes) removed.

        Pinned images, and those that somebody has open, stay.
        """
        return self._store.prune()

    def clean(self, stall_time: float | None = None) -> None:
        """Remove invalid images, and incomplete ones that nobody has written for *stall_time*
        seconds."""
        self._store.clean(self._stall_time if stall_time is None else stall_time)

    # Caching

    def queue_image(self, image_id: str) -> bool:
        """Queue an image; False when it is queued, cached or being cached already."""
        try:
            return self._store.enqueue(image_id)
        except ImageExistsError:
            return False

    def get_caching_iter(
        self, image_id: str, image_checksum: str | None, image_iter: Iterable[bytes]
    ) -> Iterable[bytes]:
        """An iterator over *image_iter*'s chunks that caches them on the way.

        An image that is cached or being cached is passed through as it is. See
        :meth:`cache_tee_iter` for the rest.
        """
        if not self._is_cacheable(image_id):
            return image_iter
        return self.cache_tee_iter(image_id, image_iter, image_checksum)

    def cache_tee_iter(
        self, image_id: str, image_iter: Iterable[bytes], image_checksum: str | None
    ) -> Iterator[bytes]:
        """Yield every chunk of *image_iter* and cache the image when the last has passed.

        *image_checksum* is MD5 hex (or ``ALGO:HEX``) or None. Raises ChecksumError after the last
        chunk where the bytes are others: they land in ``invalid/``. Whatever *image_iter* raises
        goes through, and nothing is cached; likewise when the iterator is dropped half way. When it
        is the cache that fails (no room, say), that is logged and the chunks go on."""
        expected = Digest.parse(image_checksum) if image_checksum else None
        check_image_id(image_id)
        return self._tee(image_id, image_iter, expected)

    def cache_image_iter(
        self, image_id: str, image_iter: Iterable[bytes], image_checksum: str | None = None
    ) -> bool:
        """Cache the image that *image_iter* yields. False when it is cached or being cached
        already, or when the cache failed; errors as in :meth:`cache_tee_iter`."""
        if not self._is_cacheable(image_id):
            return False
        for _ in self.get_caching_iter(image_id, image_checksum, image_iter):
            pass
        return self.is_cached(image_id)

    def cache_image_file(self, image_id: str, image_file: BinaryIO) -> bool:
        """Cache the image that the binary file *image_file* holds, from where it stands."""
        return self.cache_image_iter(image_id, iter(lambda: image_file.read(CHUNK_SIZE), b""))

    @contextlib.contextmanager
    def open_for_read(self, image_id: str) -> Iterator[BinaryIO]:
        """Open a cached image; leaving the context without an error adds one hit.

        It cannot be evicted meanwhile. Raises ImageNotFoundError.
        """
        image = self._store.open_image(check_image_id(image_id))
        with os.fdopen(image.fd, "rb") as file:
            yield file
        self._store.hit(image_id)

    # Inside

    def _is_cacheable(self, image_id: str) -> bool:
        return not self.is_cached(image_id) and not self._store.is_being_written(image_id)

    def _deleted(self, image_id: str) -> bool:
        try:
            self._store.evict(image_id, force=True)
        except ImageNotFoundError:
            return False
        return True

    def _tee(
        self, image_id: str, image_iter: Iterable[bytes], expected: Digest | None
    ) -> Iterator[bytes]:
        transaction = self._begin(image_id)
        hasher = Hasher(expected, "md5")
        try:
            for chunk in image_iter:
                if transaction is not None:
                    transaction = _written(transaction, chunk)
                hasher.update(chunk)
                yield chunk
            if transaction is not None:
                _finish(transaction, hasher)
            else:
                hasher.finish()
        finally:
            if transaction is not None:
                transaction.abort()

    def _begin(self, image_id: str) -> Transaction | None:
        try:
            return self._store.begin(image_id)
        except (ImageExistsError, ImageBusyError):
            return None
        except (CacheFSError, OSError) as error:
            log.warning("cannot cache image %r, passing it through: %s", image_id, error)
            return None


def _written(transaction: Transaction, chunk: bytes) -> Transaction | None:
    """*transaction* with *chunk* written, or None when the cache failed and was given up."""
    try:
        transaction.write(chunk)
    except (CacheFSError, OSError) as error:
        log.warning("gave up caching image %r: %s", transaction.image_id, error)
        transaction.abort()
        return None
    return transaction


def _finish(transaction: Transaction, hasher: Hasher) -> None:
    try:
        digest = hasher.finish()
    except ChecksumError as error:
        transaction.reject(error)
        raise
    try:
        transaction.commit(checksum=digest, verified=hasher.verifies)
    except (CacheFSError, OSError) as error:
        log.warning("could not publish image %r: %s", transaction.image_id, error)
        transaction.abort()
