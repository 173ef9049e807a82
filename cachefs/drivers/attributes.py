"""An image's record as extended attributes of its file: names, formats, reading and writing.

Owns the formats of what only the xattr driver keeps there; the rest of a record is
:mod:`cachefs.drivers.file_record`'s. Takes whatever it finds: any process may write an attribute,
so one that makes no sense counts as missing. Knows nothing of directories and indexes.
"""

import ctypes
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import xattr

from cachefs.drivers.base import Entry, file_id
from cachefs.drivers.file_record import FILE, NAMES, PINNED, texts_of, with_texts
from cachefs.units import to_ns

T = TypeVar("T")

HITS = "user.hits"
"""ASCII decimal on the file itself, as ``glance.image_cache.drivers.xattr`` writes it."""
INODE = "user.cachefs.inode"
MAX_INODE = 2**62
"""A greater number in an attribute is garbage."""


def read(path: str, name: str) -> str | None:
    """The attribute's text, or None where the file has no such attribute."""
    try:
        value: bytes = _unchanged(lambda: xattr.getxattr(path, name))
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise
    return value.decode(errors="replace")


def write(path: str, name: str, text: str) -> None:
    """Set the attribute; an empty text removes it."""
    if text:
        xattr.setxattr(path, name, text.encode())
        return
    try:
        xattr.removexattr(path, name)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


def create(path: str, name: str, text: str) -> bool:
    """Set the attribute if the file has none of the name; False where it has."""
    try:
        xattr.setxattr(path, name, text.encode(), options=xattr.XATTR_CREATE)
    except FileExistsError:
        return False
    return True


def read_entry(image_id: str, path: str, found: os.stat_result) -> Entry:
    """The record on the image's file *path*, of inode *found*; number 0 where it has none yet."""
    names = _unchanged(lambda: xattr.listxattr(path))
    read_texts = {name: read(path, name) for name in names if name in _TEXTS}
    texts = {name: text for name, text in read_texts.items() if text is not None}
    entry = Entry(
        image_id,
        found.st_size,
        hits=decimal(texts.get(HITS)),
        last_accessed=found.st_atime,
        last_modified=found.st_mtime,
        inode=inode_number(texts.get(INODE)),
    )
    return with_texts(entry, texts)


def scan(path: str) -> tuple[int | None, bool]:
    """What an index needs of a file: its inode number, None where it has no such attribute and 0
    where it makes no sense; and whether it is pinned.

    For reading a whole directory. By :mod:`os`, not :mod:`xattr`, whose calls cost three times as
    much: of 100,000 files it is most of the start. Listed first, for an attribute that is missing
    is an exception, which costs as much as the list.
    """
    names = os.listxattr(path)
    if INODE not in names:
        return None, PINNED in names
    text = os.getxattr(path, INODE).decode(errors="replace")
    return inode_number(text), PINNED in names


def number(path: str, inode: int) -> None:
    """Give the file the inode number, by :mod:`os` as :func:`scan`. Raises
    :class:`FileExistsError` where it has one."""
    os.setxattr(path, INODE, b"%d" % inode, os.XATTR_CREATE)


def write_entry(path: str, entry: Entry) -> Entry:
    """Put the record on the file *path*; a last_modified of 0 leaves the file's mtime. The record,
    which speaks of that file from now on."""
    texts = {HITS: str(entry.hits), **texts_of(entry), INODE: str(entry.inode)}
    for name, text in texts.items():
        write(path, name, text)
    modified_ns = to_ns(entry.last_modified) or Path(path).stat().st_mtime_ns
    os.utime(path, ns=(to_ns(entry.last_accessed), modified_ns))
    file = file_id(Path(path).lstat())
    write(path, FILE, file)
    return replace(entry, file=file)


def set_accessed(path: str, when: float) -> None:
    """Set the file's atime and leave its mtime alone (``UTIME_OMIT``, utimensat(2), which
    :func:`os.utime` does not have): written back, a mtime read before could hide a change."""
    accessed_ns = to_ns(when)
    accessed = _Timespec(accessed_ns // 10**9, accessed_ns % 10**9)
    times = (_Timespec * 2)(accessed, _Timespec(0, _UTIME_OMIT))
    if _LIBC.utimensat(_AT_FDCWD, os.fsencode(path), times, _AT_SYMLINK_NOFOLLOW):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def decimal(text: str | None) -> int:
    """A number of at most 18 ASCII digits; 0 for anything else."""
    if text is None or len(text) > 18 or not (text.isascii() and text.isdigit()):
        return 0
    return int(text)


def inode_number(text: str | None) -> int:
    """The number in :data:`INODE`, or 0 where it is none."""
    number = decimal(text)
    return number if number < MAX_INODE else 0


def _unchanged(read: Callable[[], T]) -> T:
    """The result of a call of :mod:`xattr`, which asks for the size first and is told ERANGE where
    another process has written more by the time it asks for the bytes (getxattr(2))."""
    while True:
        try:
            return read()
        except OSError as error:
            if error.errno != errno.ERANGE:
                raise


_TEXTS = NAMES | {HITS, INODE}

_UTIME_OMIT = (1 << 30) - 2  # sys/stat.h
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW = -100, 0x100  # fcntl.h
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    """``struct timespec``."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))
