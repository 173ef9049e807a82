"""``ImageCache``: the cache as a library, method for method that of
``glance.image_cache.ImageCache``.

A thin face over :class:`~cachefs.cache.store.Store`; owns the tee and Glance's shapes (mappings,
MD5, False instead of an exception), and nothing else."""

import contextlib
import logging
import os
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from cachefs.cache.capacity import Limits
from cachefs.cache.store import Store
from cachefs.cache.transaction import Hasher, Transaction
from cachefs.drivers import DEFAULT, DRIVERS
from cachefs.errors import (
    CacheFSError,
    ChecksumError,
    ImageBusyError,
    ImageExistsError,
    ImageNotFoundError,
    IndexBusyError,
    InvalidValueError,
)
from cachefs.image import Digest, check_image_id
from cachefs.units import Amount

log = logging.getLogger(__name__)

CHUNK_SIZE = 64 * 2**20
"""Bytes read at once from an image file given to :meth:`ImageCache.cache_image_file`, as in
Glance."""


class ImageCache:
    """An LRU cache of image files in *cache_dir*, never larger than *max_size* bytes.

    *driver* is ``sqlite`` or ``xattr``; where it cannot work, sqlite serves after one warning, and
    :attr:`driver_name` says so. *stall_time* is in seconds. Use it from any number of threads and
    processes, beside a mounted daemon too. A directory that has files and is no cache raises
    CacheDirectoryError, unless *adopt*: then its files count as cached images. Every method raises
    :class:`~cachefs.errors.InvalidImageIDError` for an ID that can be no image's.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str],
        *,
        max_size: int = 10 * 2**30,
        driver: str = "sqlite",
        stall_time: float = 86400,
        adopt: bool = False,
    ) -> None:
        self._cache_dir = Path(cache_dir)
        self._adopt = adopt
        self._limits = Limits(Amount(size=max_size))
        self._driver = driver
        self._stall_time = stall_time
        self._store: Store
        self._close: weakref.finalize[..., ImageCache] | None = None
        self.init_driver()

    def init_driver(self) -> None:
        """Load the driver and make it ready; done by the constructor."""
        self.configure_driver()

    def configure_driver(self) -> None:
        """Make the driver ready, or sqlite instead where it cannot be; done by the constructor.

        Called again, it opens the directory anew, reconciled.
        """
        if self._close is not None:
            self._close()
        driver = self._driver
        if driver not in DRIVERS:
            driver = DEFAULT
            log.warning("no driver is called %r, using %s", self._driver, driver)
        self._store = Store(self._cache_dir, self._limits, driver=driver, adopt=self._adopt)
        # Glance has no method to close a cache, so it ends with its last user.
        self._close = weakref.finalize(self, self._store.close)

    @property
    def driver_name(self) -> str:
        """The driver that runs: ``sqlite`` or ``xattr``."""
        return self._store.driver_name

    @property
    def max_size(self) -> int:
        """The most bytes that the cache may take. A new value holds from the next reservation or
        :meth:`prune` on."""
        return self._limits.max_size.of(0)

    @max_size.setter
    def max_size(self, size: int) -> None:
        self._limits = Limits(Amount(size=size))
        self._store.limits = self._limits

    @property
    def stall_time(self) -> float:
        """Seconds after which :meth:`clean` removes an incomplete image that nobody writes."""
        return self._stall_time

    @stall_time.setter
    def stall_time(self, seconds: float) -> None:
        self._stall_time = seconds

    # What there is

    def is_cached(self, image_id: str) -> bool:
        """Whether the image is cached, whole and verified."""
        return self._store.is_cached(check_image_id(image_id))

    def is_queued(self, image_id: str) -> bool:
        """Whether the image waits to be fetched."""
        return self._store.quick.is_queued(check_image_id(image_id))

    def get_cache_size(self) -> int:
        """The bytes of all cached images together."""
        return self._store.totals().size

    def get_hit_count(self, image_id: str) -> int:
        """How often the image was read; 0 for one that is not cached."""
        entry = self._store.get(check_image_id(image_id))
        return entry.hits if entry else 0

    def get_cached_images(self) -> list[dict[str, object]]:
        """The cached images by ID: ``image_id size hits last_accessed last_modified checksum``, the
        last as MD5 hex, None where a daemon has verified the image by another algorithm."""
        return [
            {
                "image_id": image_id,
                "size": size,
                "hits": hits,
                "last_accessed": accessed,
                "last_modified": modified,
                "checksum": checksum,
            }
            for image_id, size, hits, accessed, modified, checksum in self._store.glance_records()
        ]

    def get_image_size(self, image_id: str) -> int:
        """The bytes of a cached image. Raises ImageNotFoundError."""
        entry = self._store.get(image_id) if self.is_cached(image_id) else None
        if entry is None:
            raise ImageNotFoundError(f"image {image_id!r} is not cached")
        return entry.size

    def get_queued_images(self) -> list[str]:
        """The queued IDs, in order of queueing."""
        return self._store.queued_ids()

    # Removing

    def delete_all_cached_images(self) -> int:
        """Remove all cached images, pinned ones too; how many went. One that cannot be removed is
        logged and left."""
        deleted = 0
        for entry in list(self._store.entries()):
            try:
                deleted += self._deleted(entry.image_id)
            except OSError as error:
                log.error("cannot delete image %r: %s", entry.image_id, error)
        return deleted

    def delete_cached_image(self, image_id: str) -> None:
        """Remove a cached image, pinned or not; nothing happens where it is not cached. Raises
        OSError where the file cannot be removed; then it is cached still."""
        self._deleted(check_image_id(image_id))

    def delete_all_queued_images(self) -> int:
        """Empty the queue; how many images were in it."""
        return sum(self._store.unqueue(image_id) for image_id in self._store.queued_ids())

    def delete_queued_image(self, image_id: str) -> None:
        """Take an image out of the queue; nothing happens where it is not in it."""
        self._store.unqueue(check_image_id(image_id))

    def prune(self) -> tuple[int, int]:
        """Evict the least recently used images until ``max_size`` holds: (files, bytes) removed.

        Pinned images, and those that a reader has open, stay.
        """
        return self._store.prune()

    def clean(self, stall_time: float | None = None) -> None:
        """Remove invalid images, and incomplete ones that have no writer and were not written for
        *stall_time* seconds."""
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
        tee = self.cache_tee_iter(image_id, image_iter, image_checksum)
        try:
            if not self.is_cached(image_id) and not self._store.is_being_written(image_id):
                return tee
        except (CacheFSError, OSError) as error:
            log.warning("cannot cache image %r, passing it through: %s", image_id, error)
        return image_iter

    def cache_tee_iter(
        self, image_id: str, image_iter: Iterable[bytes], image_checksum: str | None
    ) -> Iterator[bytes]:
        """Yield every chunk of *image_iter* and cache the image when the last has passed.

        *image_checksum* is MD5 hex (or ``ALGO:HEX``) or None. Raises ChecksumError after the last
        chunk where the bytes are others, or the checksum is none: they land in ``invalid/``.
        Whatever *image_iter* raises goes through, and nothing is cached; likewise when the iterator
        is dropped half way. When it is the cache that fails (no room, say), that is logged and the
        chunks go on."""
        return self._tee(check_image_id(image_id), image_iter, _expected(image_checksum))

    def cache_image_iter(
        self, image_id: str, image_iter: Iterable[bytes], image_checksum: str | None = None
    ) -> bool:
        """Cache the image that *image_iter* yields. False when it is cached or being cached
        already, or when the cache failed; errors as in :meth:`cache_tee_iter`."""
        return self._cache(image_id, image_iter, image_checksum, size=0)

    def cache_image_file(self, image_id: str, image_file: BinaryIO) -> bool:
        """Cache the image that the binary file *image_file* holds, from where it stands; as
        :meth:`cache_image_iter`. Where the file can tell its length, room is reserved at once."""
        chunks = iter(lambda: image_file.read(CHUNK_SIZE), b"")
        return self._cache(image_id, chunks, None, size=_length(image_file))

    @contextlib.contextmanager
    def open_for_read(self, image_id: str) -> Iterator[BinaryIO]:
        """Open a cached image; leaving the context without an error adds one hit.

        It cannot be evicted meanwhile. Raises ImageNotFoundError.
        """
        image = self._store.open_image(check_image_id(image_id))
        with os.fdopen(image.fd, "rb") as file:
            yield file
        try:
            self._store.hit(image_id, self._store.now())
        except IndexBusyError as error:
            log.warning("could not count a hit of image %r: %s", image_id, error)

    # Inside

    def _deleted(self, image_id: str) -> bool:
        try:
            self._store.evict(image_id, force=True)
        except ImageNotFoundError:
            return False
        return True

    def _tee(
        self, image_id: str, image_iter: Iterable[bytes], expected: Digest | str | None
    ) -> Iterator[bytes]:
        writer = _Writer(self._begin(image_id, size=0), expected)
        try:
            for chunk in image_iter:
                writer.write(chunk)
                yield chunk
            writer.finish()
        finally:
            writer.give_up()

    def _cache(
        self, image_id: str, chunks: Iterable[bytes], checksum: str | None, *, size: int
    ) -> bool:
        writer = _Writer(self._begin(check_image_id(image_id), size), _expected(checksum))
        try:
            if not writer.caches:
                return False
            for chunk in chunks:
                if not writer.write(chunk):  # nobody else wants the rest
                    return False
            return writer.finish()
        finally:
            writer.give_up()

    def _begin(self, image_id: str, size: int) -> Transaction | None:
        """A transaction with room for *size* bytes and maybe more; None where the image cannot be
        cached, logged unless it is cached or being cached."""
        try:
            transaction = self._store.begin(image_id)
            try:
                transaction.reserve(size)
            except BaseException:
                transaction.abort()
                raise
        except (ImageExistsError, ImageBusyError):
            return None
        except (CacheFSError, OSError) as error:
            log.warning("cannot cache image %r: %s", image_id, error)
            return None
        return transaction


class _Writer:
    """Writes one image as its chunks pass, and keeps the cache's own troubles from their
    reader: they are logged, and the image is given up. Without a *transaction* it only
    verifies."""

    def __init__(self, transaction: Transaction | None, expected: Digest | str | None) -> None:
        self._transaction = transaction
        self._malformed = expected if isinstance(expected, str) else None
        self._hasher = Hasher(expected if isinstance(expected, Digest) else None, "md5")

    @property
    def caches(self) -> bool:
        """Whether the image is still being cached."""
        return self._transaction is not None

    def write(self, chunk: bytes) -> bool:
        """Take the next chunk; whether the image is still being cached."""
        self._hasher.update(chunk)
        if self._transaction is not None:
            try:
                self._transaction.write(chunk)
            except (CacheFSError, OSError) as error:
                self.give_up(error)
        return self.caches

    def finish(self) -> bool:
        """Publish the image; whether it is. Raises ChecksumError, with the bytes in ``invalid/``,
        where they are not what was promised."""
        try:
            digest = self._hasher.finish()
            if self._malformed is not None:
                raise ChecksumError(f"checksum is {digest}, expected {self._malformed!r}")
        except ChecksumError as error:
            self._reject(error)
            raise
        if self._transaction is None:
            return False
        try:
            self._transaction.commit(checksum=digest, verified=self._hasher.verifies)
        except (CacheFSError, OSError) as error:
            self.give_up(error)
            return False
        return True

    def give_up(self, why: Exception | None = None) -> None:
        """Throw away what is not published."""
        transaction, self._transaction = self._transaction, None
        if transaction is None:
            return
        if why is not None:
            log.warning("gave up caching image %r: %s", transaction.image_id, why)
        try:
            transaction.abort()
        except OSError as error:
            log.error("cannot remove %s: %s", transaction.path, error)

    def _reject(self, error: ChecksumError) -> None:
        if self._transaction is not None:
            try:
                self._transaction.reject(error)
            except OSError as trouble:
                self.give_up(trouble)


def _expected(checksum: str | None) -> Digest | str | None:
    """The digest of *checksum*; a text that is none is one that no bytes have, as in Glance."""
    if not checksum:
        return None
    try:
        return Digest.parse(checksum)
    except InvalidValueError:
        return checksum


def _length(file: BinaryIO) -> int:
    """The bytes from where *file* stands to its end; 0 where it cannot tell, as a pipe."""
    try:
        if not file.seekable():
            return 0
        here = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(here)
    except (AttributeError, OSError):
        return 0
    return max(0, end - here)
