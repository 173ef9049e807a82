"""What an image is called, what is known of it, and the states it passes through.

Owns values only: IDs, digests, states, records. Knows neither files nor sources.
"""

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from cachefs.errors import InvalidImageIDError, InvalidValueError

MAX_ID_BYTES = 255
"""NAME_MAX of Linux filesystems (``linux/limits.h``): an ID is a file's name."""

RESERVED_NAMES = frozenset(
    {
        "incomplete",
        "invalid",
        "queue",
        "cache.db",
        "cache.db-wal",
        "cache.db-shm",
        "cache.db-journal",
    }
)
"""Names that the cache directory uses for itself (Glance's layout, and SQLite's side files)."""


class State(StrEnum):
    """Where an image is on its way ``absent -> queued -> incomplete -> cached`` or ``->
    invalid``."""

    ABSENT = "absent"
    QUEUED = "queued"
    INCOMPLETE = "incomplete"
    CACHED = "cached"
    INVALID = "invalid"


def check_image_id(name: str | bytes) -> str:
    """Return *name* as an image ID, or raise :class:`InvalidImageIDError` saying what is wrong.

    An ID is 1 to 255 bytes of UTF-8 without a slash or a control character (Unicode category Cc),
    not starting with a dot, and not one of :data:`RESERVED_NAMES`.
    """
    try:
        encoded = name if isinstance(name, bytes) else name.encode()
        text = encoded.decode()
    except UnicodeError:
        raise InvalidImageIDError(f"image ID {name!r} is not valid UTF-8") from None
    if not encoded:
        raise InvalidImageIDError("an image ID is not empty")
    if len(encoded) > MAX_ID_BYTES:
        raise InvalidImageIDError(f"image ID {text[:32]!r}... is over {MAX_ID_BYTES} bytes")
    if text.startswith("."):
        raise InvalidImageIDError(f"image ID {text!r} starts with a dot")
    if "/" in text or not _is_printable(text):
        raise InvalidImageIDError(f"image ID {text!r} has a slash or a control character")
    if text in RESERVED_NAMES:
        raise InvalidImageIDError(f"{text!r} is a name that the cache directory uses itself")
    return text


def _is_printable(text: str) -> bool:
    """Whether there is no control character; most IDs need no look at each of theirs."""
    if text.isprintable():
        return True
    return not any(unicodedata.category(character) == "Cc" for character in text)


@dataclass(frozen=True, slots=True)
class Digest:
    """An expected or computed digest: a :mod:`hashlib` algorithm and lower-case hex."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``ALGO:HEX``, or bare MD5 hex as Glance writes it.

        Raises :class:`InvalidValueError` for an unknown algorithm or hex of another length.
        """
        algorithm, colon, digits = text.strip().rpartition(":")
        return cls.of(algorithm if colon else "md5", digits)

    @classmethod
    def of(cls, algorithm: str, digits: str) -> Self:
        """The digest of these parts, checked; errors as in :meth:`parse`."""
        algorithm, digits = algorithm.lower(), digits.lower()
        try:
            length = hashlib.new(algorithm, usedforsecurity=False).digest_size
        except (ValueError, TypeError):  # a NUL or a surrogate in it is a TypeError
            raise InvalidValueError(f"unknown digest algorithm {algorithm!r}") from None
        try:
            wrong = length == 0 or len(bytes.fromhex(digits)) != length
        except ValueError:
            wrong = True
        if wrong or len(digits) != 2 * length:
            raise InvalidValueError(f"{digits!r} is not a {algorithm} digest in hex")
        return cls(algorithm, digits)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What ``cat control/cached/ID`` and its like show; Glance's keys first, ours after.

    Times are seconds since the epoch, sizes bytes. *checksum* is MD5 hex where Glance or this API's
    MD5 gave one, else ``ALGO:HEX``; *verified* says that the source promised it. *progress* is the
    number of bytes that have arrived, of an incomplete image; *priority* is a queued one's, and so
    are *waiting*, what it waits for (``source``, ``room``, ``writer`` or ``cache``; *error* says
    why), and *next_try*, when it is asked for again at the latest."""

    image_id: str
    size: int
    hits: int = 0
    last_accessed: float = 0.0
    last_modified: float = 0.0
    checksum: str | None = None
    state: State = State.CACHED
    pinned: bool = False
    fetched: float | None = None
    source: str | None = None
    error: str | None = None
    verified: bool = False
    progress: int | None = None
    priority: int | None = None
    waiting: str | None = None
    next_try: float | None = None

    def as_dict(self) -> dict[str, object]:
        """The record as a JSON object's members, in the order of the fields."""
        members: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        for name in ("progress", "priority", "waiting", "next_try"):
            if members[name] is None:
                del members[name]
        return members

    def as_json(self) -> str:
        """The record as one line of JSON with its newline."""
        return json.dumps(self.as_dict(), ensure_ascii=False) + "\n"
