"""Versions of images whose bytes were wrong, twice: they are not downloaded again for a reader.

Bounded, and in memory; the failures on the disk name their versions too, so that the next daemon
knows them. Pure bookkeeping of one event loop."""

import hashlib
from collections import OrderedDict

from cachefs.errors import ChecksumError
from cachefs.sources import SourceImage

MOST = 10_000
"""Versions remembered; the oldest are forgotten first, and would be downloaded once more."""


class Rejected:
    """The rejected version of each image, and why it was rejected."""

    def __init__(self) -> None:
        self._rejected: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def add(self, image_id: str, version: str, error: str) -> None:
        """This version of the image is wrong, instead of an earlier one."""
        self._rejected[image_id] = version, error
        self._rejected.move_to_end(image_id)
        if len(self._rejected) > MOST:
            self._rejected.popitem(last=False)

    def check(self, image: SourceImage) -> None:
        """Raise ChecksumError where this very version has been rejected."""
        known = self._rejected.get(image.image_id)
        if known is not None and known[0] == version_name(image):
            raise ChecksumError(known[1])

    def forget(self, image_id: str) -> None:
        """The image is wanted all the same, whatever it was."""
        self._rejected.pop(image_id, None)

    def clear(self) -> None:
        """Forget all."""
        self._rejected.clear()


def version_name(image: SourceImage) -> str:
    """A name for what the source shows of this version: its bytes may be right once any of that is
    another."""
    shown = f"{image.source}\n{image.size}\n{image.version}\n{image.digest}"
    return hashlib.sha256(shown.encode()).hexdigest()
