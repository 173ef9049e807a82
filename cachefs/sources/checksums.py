"""Digests from checksum files that lie beside the images.

Owns the formats, which file wins, and for how long an answer is believed; knows nothing of where
the files come from: it is given a callable that reads a small one by name.

Which digest counts, in this order: ``SHA512SUMS``, ``SHA256SUMS``, ``MD5SUMS``, then ``ID.sha512``,
``ID.sha256``, ``ID.md5``. The lists come first because one of them answers for all images, and a
file per image costs a request per image; it is asked for only when no list names the image.

Verification is never lost in silence: a checksum file that is there but cannot be read, or is an
HTML page, or (one of a single image) holds no digest, is an error; only "not found" means "none".
"""

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cachefs.errors import CacheFSError, InvalidValueError, SourceError
from cachefs.image import Digest

ALGORITHMS: Final = ("sha512", "sha256", "md5")
"""Strongest first."""

MAX_LIST_BYTES: Final = 64 * 2**20
MAX_SINGLE_BYTES: Final = 64 * 2**10

BELIEVED: Final = 60.0
"""Seconds for which the digest of a version of an image is not asked for again."""

FRESH: Final = 2.0
"""Seconds for which a list (or its absence) is used without asking whether it has changed."""

_MAX_ANSWERS: Final = 4096

# coreutils' md5sum and its like: a leading backslash says that the name is escaped; * is binary.
_GNU = re.compile(r"(\\?)([0-9A-Fa-f]{32,128})(?: [ *]|\t+| +)(.+)")
# BSD's md5, `sha256sum --tag`, and `openssl dgst` (which leaves out the spaces).
_BSD = re.compile(r"(\\?)([A-Za-z0-9-]{2,16}) ?\((.+)\) ?= ?([0-9A-Fa-f]{32,128})")
_BARE = re.compile(r"[0-9A-Fa-f]{32,128}")
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED: Final = {"n": "\n", "r": "\r", "\\": "\\"}
_TAGS: Final = {
    "sha512": ("SHA512", "SHA2-512"),
    "sha256": ("SHA256", "SHA2-256"),
    "md5": ("MD5",),
}


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A file read whole. *version* is its ETag or the like; *data* is None if that is known."""

    version: str | None
    data: bytes | None


ReadSmall = Callable[[str, str | None, int], SmallFile | None]
"""``read(name, known_version, max_bytes)``: the file, or None where there is none.

Raises SourceError for one that is larger, or that cannot be read.
"""


@dataclass(frozen=True, slots=True)
class _List:
    version: str | None
    digests: dict[str, Digest]
    asked: float


@dataclass(frozen=True, slots=True)
class _Answer:
    version: str | None
    asked: float
    digest: Digest | None


_UNKNOWN: Final = _Answer("", 0.0, None)
"""What is remembered of an image whose answer was wrong: of no version, so a changed image."""


class ChecksumFiles:
    """The checksum files of one source; thread-safe."""

    def __init__(self, read: ReadSmall, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._lists: dict[str, _List] = {}
        self._list_locks = {algorithm: threading.Lock() for algorithm in ALGORITHMS}
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._answers_lock = threading.Lock()

    def digest_of(self, image_id: str, version: str | None) -> Digest | None:
        """What this version of the image must have; None if no checksum file names it.

        Costs nothing if it was asked within :data:`BELIEVED` seconds, else at most one request for
        each list (a conditional one, for a list that is known) and, if no list names the image, for
        each kind of file of its own. Raises SourceError if a file cannot be read.
        """
        now = self._clock()
        with self._answers_lock:
            known = self._answers.get(image_id)
        changed = known is not None and known.version != version
        if known and version is not None and not changed and now - known.asked < BELIEVED:
            return known.digest
        # Where the image is another, so is most likely the list, however short ago it was read.
        digest = self._look_up(image_id, 0.0 if changed else FRESH)
        self._remember(image_id, _Answer(version, now, digest))
        return digest

    def forget(self, image_id: str) -> None:
        """Look the image up anew next time, in lists that are asked for whether they have changed:
        an operator may just have put them right."""
        self._remember(image_id, _UNKNOWN)

    def _remember(self, image_id: str, answer: _Answer) -> None:
        with self._answers_lock:
            self._answers[image_id] = answer
            self._answers.move_to_end(image_id)
            if len(self._answers) > _MAX_ANSWERS:
                self._answers.popitem(last=False)

    def _look_up(self, image_id: str, fresh: float) -> Digest | None:
        for algorithm in ALGORITHMS:
            if digest := self._list(algorithm, fresh).get(image_id):
                return digest
        for algorithm in ALGORITHMS:
            name = f"{image_id}.{algorithm}"
            file = self._open(name, None, MAX_SINGLE_BYTES)
            if file is not None:
                return parse_single(file.data or b"", algorithm, image_id)
        return None

    def _list(self, algorithm: str, fresh_for: float) -> dict[str, Digest]:
        # The lock is held while reading: of many who ask at once one reads, and the rest wait.
        with self._list_locks[algorithm]:
            known = self._lists.get(algorithm)
            now = self._clock()
            if known is not None and now - known.asked < fresh_for:
                return known.digests
            version = known.version if known is not None else None
            file = self._open(f"{algorithm.upper()}SUMS", version, MAX_LIST_BYTES)
            if file is None:
                fresh = _List(None, {}, now)
            elif file.data is None and known is not None:
                fresh = _List(version, known.digests, now)
            else:
                fresh = _List(file.version, parse_list(file.data or b"", algorithm), now)
            self._lists[algorithm] = fresh
            return fresh.digests

    def _open(self, name: str, version: str | None, limit: int) -> SmallFile | None:
        try:
            return self._read(name, version, limit)
        except CacheFSError as error:
            # The same class, so that an outage stays an outage; more words, so that it is known why
            # an image that is there is refused.
            raise type(error)(f"cannot verify images: {error}") from error


def parse_list(data: bytes, algorithm: str) -> dict[str, Digest]:
    """The digests by name in a list as coreutils, BSD or openssl write it.

    Lines that are none (comments, PGP armour, other algorithms) are skipped. A name that stands
    there twice has the later digest: lists are appended to.
    """
    digests: dict[str, Digest] = {}
    for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            text = line.decode().removesuffix("\r")
        except UnicodeDecodeError:
            continue
        if found := _parse_line(text, algorithm):
            name, digest = found
            digests[name.removeprefix("./")] = digest
    return digests


def parse_single(data: bytes, algorithm: str, image_id: str) -> Digest:
    """The digest in a file of one image: bare hex, or a line as in :func:`parse_list`.

    The line's name does not matter if there is only one (the image may have been renamed, or summed
    elsewhere). Raises SourceError if it holds none, or none that must be this image's.
    """
    digests = parse_list(data, algorithm)
    if image_id in digests:
        return digests[image_id]
    if len(digests) == 1:
        return next(iter(digests.values()))
    if not digests:
        for line in data.decode(errors="replace").split():
            if _BARE.fullmatch(line) and (digest := _digest(algorithm, line)):
                return digest
    raise SourceError(f"{image_id}.{algorithm} beside the images holds no {algorithm} digest of it")


def _parse_line(text: str, algorithm: str) -> tuple[str, Digest] | None:
    if found := _BSD.fullmatch(text):
        escaped, tag, name, digits = found.groups()
        if tag.upper() not in _TAGS[algorithm]:
            return None
    elif found := _GNU.fullmatch(text):
        escaped, digits, name = found.groups()
    else:
        return None
    if escaped:
        name = _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[0]), name)
    digest = _digest(algorithm, digits)
    return (name, digest) if digest is not None else None


def _digest(algorithm: str, digits: str) -> Digest | None:
    try:
        return Digest.of(algorithm, digits)
    except InvalidValueError:
        return None  # of another length, so of another algorithm
