"""What checksum files are called.

Owns the names, and which algorithm and which image a name tells of; knows nothing of what is in
them.
"""

import re
from collections.abc import Collection
from typing import Final

FIRST_LISTS: Final = ("SHA512SUMS", "SHA256SUMS")
"""Each is asked for only if those before it do not name the image."""

MORE_LISTS: Final = ("MD5SUMS", "CHECKSUM", "sha256sum.txt", "sha256sums.txt")
"""Asked for at the same time."""

OWN_FILES: Final = ("{}.sha512", "{}.sha256", "{}.md5", "{}.CHECKSUM", "{}-CHECKSUM")
"""Of one image each, the strongest first."""

MAX_LISTED: Final = 8
"""How many lists that a listing shows are read for one image: those called most like it."""

_LIST_NAME = re.compile(
    r"(?:.*[-_.])?(?:checksums?|(md5|sha1|sha224|sha256|sha384|sha512|b2)sums?)(?:\.txt)?",
    re.IGNORECASE,
)
_ALGORITHMS: Final = {"b2": "blake2b"}


def algorithm_of(name: str) -> str | None:
    """The algorithm that a list is named after; None for ``CHECKSUM`` and its like."""
    found = _LIST_NAME.fullmatch(name)
    named = (found[1] or "").lower() if found else ""
    return _ALGORITHMS.get(named, named) or None


def checksum_files(names: Collection[str]) -> dict[str, str | None]:
    """Those of *names*, the files of a source, that are called like a list of checksums
    (``Fedora-42-CHECKSUM``, ``md5sum.txt``), each with the file that it is called after and so
    speaks of alone (``disk.img`` for ``disk.img.CHECKSUM``), None where it is no such."""
    there = frozenset(names)
    return {name: _owner(name, there) for name in there if _LIST_NAME.fullmatch(name)}


def further_lists(listed: dict[str, str | None], image_id: str) -> list[str]:
    """Of the *listed* (see :func:`checksum_files`) the lists that may speak of the image and are
    not asked for anyway."""
    names = [name for name, owner in listed.items() if owner is None]
    others = set(names).difference(FIRST_LISTS, MORE_LISTS)
    return sorted(others, key=lambda name: (-_alike(name, image_id), name))[:MAX_LISTED]


def own_files(listed: dict[str, str | None], image_id: str) -> list[str]:
    """The files to ask for that speak of this image alone."""
    names = [form.format(image_id) for form in OWN_FILES]
    names += [name for name, owner in listed.items() if owner == image_id and name not in names]
    return names


def _owner(name: str, names: frozenset[str]) -> str | None:
    ends = [number for number, character in enumerate(name) if number and character in "-_."]
    return next((name[:end] for end in reversed(ends) if name[:end] in names), None)


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
