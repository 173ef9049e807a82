"""What a record says of an image, written on the image's own file, too: the copy that is left where
an index is lost.

Owns the extended attributes that both drivers write, and how they are read back. All is best
effort: a filesystem may have no user attributes, a file may be immutable, and what cannot be
written is only missing on the day that it is needed. Any process may write an attribute, so one
that makes no sense counts as missing, and none is believed of another file than the one that
:data:`FILE` names. Real hits and times of access are not here: they are the index's. Glance's xattr
driver takes no notice of attributes whose names begin with ``user.cachefs.``.
"""

import errno
import logging
import math
import os
import stat
from dataclasses import replace

from cachefs.drivers.base import Entry, file_id, size_in
from cachefs.drivers.files import is_trusted
from cachefs.errors import InvalidValueError
from cachefs.image import Digest

log = logging.getLogger(__name__)

PINNED = "user.cachefs.pinned"
FETCHED = "user.cachefs.fetched"
SOURCE = "user.cachefs.source"
CHECKSUM = "user.cachefs.checksum"
VERIFIED = "user.cachefs.verified"
PRIVATE = "user.cachefs.private"
FILE = "user.cachefs.file"
"""Which file the others were written on (:func:`cachefs.drivers.base.file_id`): they may be copied
to another one, and its bytes may become others below them."""

IMAGE = "user.cachefs.image"
"""Whose record it is: a file may be renamed to another image's name, with all that is on it."""

NAMES = frozenset({PINNED, FETCHED, SOURCE, CHECKSUM, VERIFIED, PRIVATE, FILE, IMAGE})

NO_FILE = "0:0:0"
"""A file that there is not: of whom nothing that is written is believed."""

SOURCE_BYTES = 1024
"""A longer source is cut: ext4 has one block, 4 KiB, for all attributes of a file."""


def texts_of(entry: Entry) -> dict[str, str]:
    """The attributes that say what *entry* knows, but for :data:`FILE`; an empty text is none."""
    return {
        IMAGE: entry.image_id,
        PINNED: "1" if entry.pinned else "",
        FETCHED: "" if entry.fetched is None else repr(entry.fetched),
        SOURCE: (entry.source or "").encode()[:SOURCE_BYTES].decode(errors="ignore"),
        CHECKSUM: entry.checksum or "",
        VERIFIED: "1" if entry.verified else "",
        PRIVATE: "1" if entry.private else "",
    }


def with_texts(entry: Entry, texts: dict[str, str]) -> Entry:
    """*entry* with what the attributes *texts* say; those that are missing say that there is
    nothing. What they say of another image is not believed of this one, but for whether others may
    read it."""
    if texts.get(IMAGE, entry.image_id) != entry.image_id:
        return replace(entry, hits=0, file=NO_FILE, private=PRIVATE in texts)
    checksum = texts.get(CHECKSUM)
    has_digest = _is_digest(checksum)
    return replace(
        entry,
        pinned=PINNED in texts,
        fetched=_time(texts.get(FETCHED)),
        source=texts.get(SOURCE),
        checksum=checksum if has_digest else None,
        verified=has_digest and VERIFIED in texts,
        private=PRIVATE in texts,
        file=_file(texts.get(FILE)),
    )


def describe(fd: int, entry: Entry) -> bool:
    """Write on the open file what *entry* says of it; False, and a line in the debug log, where
    that cannot be. Durable once the caller has synced the file, whose mtime must be final. A file
    that says so already is not written to."""
    try:
        found = os.fstat(fd)
        has = set(os.listxattr(fd))
        # INVARIANT: FILE comes last. What is half written is on a file that FILE does not name, or
        # is one change of a record that was true before.
        for name, text in (texts_of(entry) | {FILE: file_id(found)}).items():
            value = text.encode()
            if not value:
                if name in has:
                    os.removexattr(fd, name)
            elif name not in has or os.getxattr(fd, name) != value:
                os.setxattr(fd, name, value)
    except OSError as error:
        log.debug("image %r: its record is in the index only: %s", entry.image_id, error)
        return False
    return True


def describe_at(path: str, entry: Entry) -> bool:
    """As :func:`describe`, on the file *path*, if it is the one that *entry* speaks of."""
    try:
        fd = _opened(path)
    except OSError as error:
        log.debug("image %r: its record is in the index only: %s", entry.image_id, error)
        return False
    try:
        return file_id(os.fstat(fd)) == entry.file and describe(fd, entry)
    finally:
        os.close(fd)


def adopted(image_id: str, path: str, found: os.stat_result) -> Entry:
    """The record of the image file *path*, of inode *found*, that no index knows: its times, and
    what is written on it.

    It speaks of the file that is there where that was written of this very file, or nothing was.
    Written of another one, or of this one as it was before a change, it is kept if it has a digest,
    and speaks of that other file: whether the bytes are right, the digest decides. Without one
    nothing of it is kept, but that it is private, which can only take away."""
    plain = Entry(
        image_id,
        found.st_size,
        last_accessed=found.st_atime,
        last_modified=found.st_mtime,
        file=file_id(found),
    )
    told = with_texts(plain, _read(path, found))
    if told.file is None or (told.file != plain.file and told.checksum is None):
        return replace(plain, private=told.private)
    return told


def is_marked_private(fd: int) -> bool:
    """Whether the open image file is marked as one that others may not read; also where that cannot
    be told."""
    try:
        return PRIVATE in os.listxattr(fd)
    except OSError:
        return True


def is_possible(path: str) -> bool:
    """Whether a file in the directory of the file *path* can have user attributes."""
    name = "user.cachefs.probe"
    try:
        os.setxattr(path, name, b"1")
        os.removexattr(path, name)
    except OSError:
        return False
    return True


# Inside


def _opened(path: str) -> int:
    """The file *path*, of a trusted user, for a look at its inode only. A link is not followed,
    whoever has put it there."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and is_trusted(status.st_uid):
        return fd
    os.close(fd)
    raise PermissionError(errno.EPERM, "not a plain file of ours", path)


def _read(path: str, found: os.stat_result) -> dict[str, str]:
    """The attributes of the file *path*; none where it is not that of inode *found*."""
    try:
        fd = _opened(path)
    except OSError:
        return {}
    try:
        if file_id(os.fstat(fd)) != file_id(found):
            return {}
        return {
            name: os.getxattr(fd, name).decode(errors="replace")
            for name in os.listxattr(fd)
            if name in NAMES
        }
    except OSError as error:  # no such attributes here, or one that has just gone
        log.debug("what is written on %s cannot be read: %s", path, error)
        return {}
    finally:
        os.close(fd)


def _is_digest(text: str | None) -> bool:
    try:
        return bool(text and Digest.parse(text))
    except InvalidValueError:
        return False


def _file(text: str | None) -> str | None:
    return text if text is not None and size_in(text) >= 0 else None


def _time(text: str | None) -> float | None:
    try:
        seconds = float(text or "nan")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else None
