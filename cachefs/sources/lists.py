"""The formats of checksum lists: from the pieces of a file to the digests in it, by name.

Owns how a line is read and how little memory a list of a million lines takes; knows nothing of
where a list comes from, nor which one counts (see :mod:`cachefs.sources.checksums`).

Read are lists as coreutils, BSD and openssl write them, clearsigned or not, in UTF-8 or (with a
byte order mark, as PowerShell's ``>`` writes it) UTF-16, and lines with a column of sizes.
"""

import codecs
import hashlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Final

from cachefs.errors import SourceError
from cachefs.image import Digest

_UTF16 = codecs.getincrementaldecoder("utf-16")  # here, for :mod:`cachefs.sources.web`'s reason

STRONGEST_FIRST: Final = (
    "sha512",
    "sha3_512",
    "blake2b",
    "sha384",
    "sha3_384",
    "sha256",
    "sha3_256",
    "blake2s",
    "sha224",
    "sha1",
    "md5",
)
"""The algorithms that are taken from a list; of two digests of one image, the earlier counts."""

MAX_LINE: Final = 16 * 2**10
"""Bytes of the longest line that is read: a path of PATH_MAX, escaped, and a digest."""

# coreutils' md5sum and its like: a leading backslash says that the name is escaped; * is binary.
_GNU = re.compile(r"(\\?)([0-9A-Fa-f]{32,128})(?: [ *]|\t+| +)(.+)")
# BSD's md5, `sha256sum --tag`, and `openssl dgst` (which leaves out the spaces).
_BSD = re.compile(r"(\\?)([A-Za-z0-9-]{2,16}) ?\((.+)\) ?= ?([0-9A-Fa-f]{32,128})")
# Any other line with one digest among its columns: "SIZE DIGEST NAME", "NAME: DIGEST", and so on.
_COLUMNS = re.compile(r"(?:(.*)\s)?([0-9A-Fa-f]{32,128})(?:\s(.*))?")
_BARE = re.compile(r"[0-9A-Fa-f]{32,128}")
_SIZE_FIRST = re.compile(r"\d+\s+(?=\S)")
_SIZE_LAST = re.compile(r"(?<=\S)\s+\d+$")
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED: Final = {"n": "\n", "r": "\r", "\\": "\\"}
_BY_LENGTH: Final = {
    32: "md5",
    40: "sha1",
    56: "sha224",
    64: "sha256",
    96: "sha384",
    128: "sha512",
}
_DIGITS: Final = {name: 2 * hashlib.new(name).digest_size for name in STRONGEST_FIRST}
_KEY: Final = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One digest of a list. *exact* says that the list gives it this very *name*; else the name is
    a guess: the last part of a path, or what follows a column that may be a size."""

    name: str
    digest: Digest
    exact: bool = True


def entries(pieces: Iterable[bytes], algorithm: str | None) -> Generator[Entry]:
    """The digests in a list, in order. *algorithm* is the one that the list is named after, None
    where its lines tell it, by their tag or by the length of their digits.

    Lines that hold none (comments, PGP armour, other algorithms) are skipped.
    """
    for line in _lines(pieces):
        try:
            text = line.decode().removesuffix("\r")
        except UnicodeDecodeError:
            continue
        yield from _read_line(text, algorithm)


def bare_digest(data: bytes, algorithm: str | None) -> Digest | None:
    """The first digest of *algorithm* that stands in *data* as a word of its own."""
    for word in data.decode(errors="replace").split():
        if _BARE.fullmatch(word) and (digest := _digest(algorithm, word)):
            return digest
    return None


@dataclass(slots=True)
class _Table:
    """Digests of one algorithm by name, packed: the name's hash and the digest, sorted by hash.
    A dictionary of the same takes ten times the memory."""

    width: int
    rows: list[bytes] = field(default_factory=list)
    packed: bytes = b""

    def add(self, name: str, digest: Digest) -> None:
        self.rows.append(_key(name) + bytes.fromhex(digest.hex))

    def pack(self) -> None:
        self.rows.sort(key=lambda row: row[:_KEY])  # stable: of one name, the later stays later
        self.packed = b"".join(self.rows)
        self.rows = []

    def find(self, name: str) -> list[str]:
        """The digests of *name* in hex, in the order of the list."""
        key, width = _key(name), _KEY + self.width
        count = range(len(self.packed) // width)

        def key_at(number: int) -> bytes:
            return self.packed[number * width : number * width + _KEY]

        first, stop = bisect_left(count, key, key=key_at), bisect_right(count, key, key=key_at)
        rows = (self.packed[number * width : (number + 1) * width] for number in range(first, stop))
        return [row[_KEY:].hex() for row in rows]

    def hashes(self) -> set[bytes]:
        """The hashes of the names. Of a small table: it is a set."""
        width = _KEY + self.width
        return {self.packed[at : at + _KEY] for at in range(0, len(self.packed), width)}

    def last(self) -> str:
        """The digest in hex that stands last."""
        return self.packed[-self.width :].hex()


class Digests:
    """The digests of one list by name. Made by :meth:`read`, and constant from then on."""

    def __init__(self) -> None:
        self._tables: dict[tuple[bool, str], _Table] = {}
        self.count = 0

    @classmethod
    def read(cls, pieces: Iterable[bytes], algorithm: str | None) -> "Digests":
        """Read a list as it comes; see :func:`entries`. Of lists of any length it keeps some 50
        bytes a line."""
        digests = cls()
        for entry in entries(pieces, algorithm):
            digests.count += 1
            kind = (entry.exact, entry.digest.algorithm)
            if kind not in digests._tables:
                digests._tables[kind] = _Table(len(entry.digest.hex) // 2)
            digests._tables[kind].add(entry.name, entry.digest)
        for table in digests._tables.values():
            table.pack()
        return digests

    def find(self, name: str) -> Digest | None:
        """What the list says of exactly this name. One that stands there twice has the later
        digest: lists are appended to."""
        for algorithm in STRONGEST_FIRST:
            table = self._tables.get((True, algorithm))
            if table is not None and (found := table.find(name)):
                return Digest(algorithm, found[-1])
        return None

    def only(self) -> Digest | None:
        """The digest of the one file that the list names; None if it names several, or none."""
        for exact in (True, False):
            tables = {kind: table for kind, table in self._tables.items() if kind[0] == exact}
            keys = {key for table in tables.values() for key in table.hashes()}
            if len(keys) == 1:
                algorithm = min((kind[1] for kind in tables), key=STRONGEST_FIRST.index)
                return Digest(algorithm, tables[exact, algorithm].last())
            if keys:
                return None
        return None

    def guess(self, name: str, what: str) -> Digest | None:
        """What the list says of the one file whose path ends with *name*. Raises SourceError,
        which begins with *what*, where several do and their digests differ."""
        for algorithm in STRONGEST_FIRST:
            table = self._tables.get((False, algorithm))
            if table is not None and (found := set(table.find(name))):
                if len(found) > 1:
                    raise SourceError(
                        f"{what}: several paths in it end with {name!r}, with different digests;"
                        " put a list beside the images that names them as they are named there"
                    )
                return Digest(algorithm, found.pop())
        return None


def _lines(pieces: Iterable[bytes]) -> Generator[bytes]:
    """The lines of a file in UTF-8. A line that is too long for a digest's is cut."""
    rest = b""
    for piece in _as_utf8(pieces):
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
        rest = rest[: MAX_LINE + 1]
    yield rest


def _as_utf8(pieces: Iterable[bytes]) -> Generator[bytes]:
    decoder: codecs.IncrementalDecoder | None = None
    head: bytes | None = b""
    for piece in pieces:
        if head is None:
            yield decoder.decode(piece).encode() if decoder else piece
            continue
        head += piece
        if len(head) < len(codecs.BOM_UTF8):
            continue
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            decoder = _UTF16("replace")
        head = head.removeprefix(codecs.BOM_UTF8)
        yield decoder.decode(head).encode() if decoder else head
        head = None
    yield head or b""


def _read_line(text: str, algorithm: str | None) -> Generator[Entry]:
    escaped = ""
    exact = True
    if found := _BSD.fullmatch(text):
        escaped, tag, name, digits = found.groups()
        digest = _tagged(tag, digits)
    elif found := _GNU.fullmatch(text):
        escaped, digits, name = found.groups()
        digest = _digest(algorithm, digits)
    elif len(text) <= MAX_LINE and (found := _COLUMNS.fullmatch(text.strip())):
        before, digits, after = (part or "" for part in found.groups())
        name = (after.strip() or before.strip()).removesuffix(":")
        exact = False
        digest = _digest(algorithm, digits) if name else None
    else:
        return
    if digest is None:
        return
    if escaped:
        name = _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[0]), name)
    name = name.removeprefix("./")
    if exact:
        yield Entry(name, digest)
    if not exact or "/" in name or " " in name or "\t" in name:
        for guess in {_last_part(name), _last_part(_without_size(name))}:
            if guess != name or not exact:
                yield Entry(guess, digest, exact=False)


def _without_size(name: str) -> str:
    """*name* without a number, and the mark of a binary file, before or after it."""
    shorter = _SIZE_FIRST.sub("", name, count=1) if _SIZE_FIRST.match(name) else name
    return _SIZE_LAST.sub("", shorter).removeprefix("*").removeprefix("./")


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


def _tagged(tag: str, digits: str) -> Digest | None:
    name = tag.lower().replace("-", "_").removeprefix("sha2_")
    name = "sha" + name if name in ("224", "256", "384", "512") else name
    return _digest(name, digits) if name in STRONGEST_FIRST else None


def _digest(algorithm: str | None, digits: str) -> Digest | None:
    """The digest, of which *digits* are known to be hex; None if they are of another length, and so
    of another algorithm."""
    algorithm = algorithm or _BY_LENGTH.get(len(digits))
    if algorithm is None or len(digits) != _DIGITS[algorithm]:
        return None
    return Digest(algorithm, digits.lower())


def _key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=_KEY).digest()
