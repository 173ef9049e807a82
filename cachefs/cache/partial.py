"""The durable map of an incomplete image: which of its chunks are on disk, so that a crash loses
little.

``.cachefs/maps/ID`` is one page of JSON, padded with spaces, that says which version of the image
the bytes are of, then one byte for each chunk:

``0``  missing
``1``  written: in the page cache, which outlives the process but not the machine
``2``  synced: durable before the byte said so

INVARIANT: after a crash only chunks whose bytes are whole are believed. A ``1`` is believed as long
as the machine has not been started again, which the boot ID in the first page tells
(``random(4)``)."""

import contextlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from cachefs.cache.layout import sync_directory
from cachefs.cache.trust import open_trusted, remove

CHUNK = 2**20
"""Bytes per chunk: about what one connection delivers in a millisecond on a fast network, and in a
twentieth of a second on a slow one; a reader waits for no less."""

MISSING, WRITTEN, SYNCED = b"\0", b"\1", b"\2"

_PAGE = 4096
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Version:
    """Which bytes a partial file has some of. *tag* is the source's own name for the version,
    *digest* the promised one; either may be None."""

    size: int
    tag: str | None
    digest: str | None

    def is_surely(self, other: "Version") -> bool:
        """Whether both are the same bytes, beyond the size: by digest, else by the source's tag."""
        if self.size != other.size:
            return False
        if self.digest is not None and other.digest is not None:
            return self.digest == other.digest
        return self.tag is not None and self.tag == other.tag


class PartialMap:
    """The map of one incomplete image. :meth:`mark_written` may be called from any thread, once the
    chunks' bytes are written; the rest by the owner of the incomplete file."""

    def __init__(self, path: Path, fd: int, version: Version, states: bytearray) -> None:
        self.version = version
        self._path = path
        self._fd = fd
        self._states = states
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: Path, version: Version) -> Self:
        """A map with nothing in it, durable before it returns. Raises ValueError where the
        version's tag is too long for a map to hold, before anything is touched."""
        header = _header(version)
        fd = _create(path)
        try:
            states = bytearray(_chunks(version.size))
            os.pwrite(fd, header, 0)
            os.ftruncate(fd, _PAGE + len(states))
            os.fsync(fd)
            sync_directory(path.parent)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):  # it speaks of no bytes, and nobody looks for it
                path.unlink()
            raise
        return cls(path, fd, version, states)

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """The map at *path*, or None where there is none or it cannot be believed."""
        try:
            fd = open_trusted(path, os.O_RDWR, alone=True)
        except OSError:  # what cannot be read is fetched again
            return None
        try:
            version, boot = _parse(os.pread(fd, _PAGE, 0))
            states = _read_states(fd, _chunks(version.size))
            if boot != _boot_id():
                states = states.replace(WRITTEN, MISSING)
                os.pwrite(fd, states, _PAGE)
                os.fsync(fd)  # before the header says that this is the boot they are of
                os.pwrite(fd, _header(version), 0)
        except (ValueError, TypeError, KeyError, RecursionError, OSError):
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, version, states)

    def present(self) -> list[int]:
        """The numbers of the chunks that are there."""
        return [number for number, state in enumerate(self._states) if state]

    def mark_written(self, first: int, stop: int) -> None:
        """Chunks [*first*, *stop*) are written. After :meth:`close` it does nothing: a thread that
        was left behind may still call it."""
        with self._lock:
            if self._fd >= 0:
                os.pwrite(self._fd, WRITTEN * (stop - first), _PAGE + first)
                self._states[first:stop] = WRITTEN * (stop - first)

    def sync(self, data: int) -> int:
        """Make all that is written durable, through the image's descriptor *data*; how many chunks
        became so. Blocks for as long as the disk takes. Raises OSError: the kernel tells of lost
        writes but once (fsync(2)), so the fetch must not go on after it."""
        with self._lock:
            numbers = [n for n, state in enumerate(self._states) if state == WRITTEN[0]]
            fd = os.dup(self._fd) if numbers and self._fd >= 0 else -1
        if fd < 0:
            return 0
        try:
            os.fdatasync(data)
            with self._lock:
                for number in numbers:
                    self._states[number] = SYNCED[0]
                os.pwrite(fd, self._states[numbers[0] :], _PAGE + numbers[0])
            os.fdatasync(fd)
        finally:
            os.close(fd)
        return len(numbers)

    def close(self) -> None:
        """Keep the map for another time."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def remove(self) -> None:
        """Close and remove the map; one that another writer has put in its place is left alone."""
        try:
            with self._lock:
                if self._fd < 0 or self._is_in_place():
                    remove(self._path)
        finally:
            self.close()

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), self._path.lstat())
        except FileNotFoundError:
            return False


def _create(path: Path) -> int:
    """A new file at *path*, never one that was there: who knows what else it is."""
    for _ in range(2):
        with contextlib.suppress(FileExistsError):
            return open_trusted(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        remove(path)
    return open_trusted(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def _chunks(size: int) -> int:
    return -(-size // CHUNK)


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _header(version: Version) -> bytes:
    members = {"format": 1, "chunk": CHUNK, "boot": _boot_id(), **asdict(version)}
    encoded = json.dumps(members).encode()
    if len(encoded) > _PAGE:
        raise ValueError(
            f"the source's name for the version has {len(version.tag or '')} characters"
        )
    return encoded.ljust(_PAGE)


def _parse(page: bytes) -> tuple[Version, str]:
    members = json.loads(page)
    if members["format"] != 1 or members["chunk"] != CHUNK:
        raise ValueError("of another format")
    size, tag, digest = members["size"], members["tag"], members["digest"]
    texts = isinstance(tag, str | None) and isinstance(digest, str | None)
    if type(size) is not int or not 0 <= size < 2**63 or not texts:
        raise ValueError("of a version that can be none")
    return Version(size, tag, digest), members["boot"]


def _read_states(fd: int, count: int) -> bytearray:
    if os.fstat(fd).st_size != _PAGE + count:
        raise ValueError("of another length than its image")
    states = bytearray(os.pread(fd, count, _PAGE))
    if len(states) != count or states.translate(None, MISSING + WRITTEN + SYNCED):
        raise ValueError("with states that there are not")
    return states
